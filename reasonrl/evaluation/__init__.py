"""Evaluation: metrics of policies, and of completions that other systems wrote."""
