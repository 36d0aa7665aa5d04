"""A run's folder and what keeps it: ownership, signals, provenance, the metrics' log.

Importing these modules does not import torch.
"""
