"""Errors meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right: printed as one line, without a traceback.

    Its message reads ``<key>=<value> must <rule>; got <other key>=<value>. <Remedy>.``
    """
