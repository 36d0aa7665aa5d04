"""Learning from tokens: the maths, the optimizer, the supervised loss, checkpoints."""
