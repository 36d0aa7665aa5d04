"""The way from a configuration to a finished run: it is planned, made, and its result shown."""
