"""Errors meant for the person at the keyboard."""


class UserError(ValueError):
    """An error that the user can put right: it is printed as one line, without a traceback.

    Its message reads ``<key>=<value> must <rule>; got <other key>=<value>. <Remedy>.``
    """


def reason(error: Exception) -> str:
    """What another library's error says, as the part of a line."""
    return " ".join(str(error).split())[:300].rstrip(".")
