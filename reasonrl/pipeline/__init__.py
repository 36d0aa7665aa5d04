"""From a configuration to a finished run: planned, made, and what came of it."""
