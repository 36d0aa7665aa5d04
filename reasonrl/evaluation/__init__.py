"""Policies, and completions of other systems, to metrics."""
