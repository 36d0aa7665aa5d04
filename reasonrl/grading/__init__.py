"""Text to verdicts: answers, calculations, steps, and the metrics over problems."""
