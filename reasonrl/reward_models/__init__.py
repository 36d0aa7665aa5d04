"""Reward models: the network, the trained model on disk and at work, and how it learns."""
