"""Reward models: the network, the model at work, how it learns."""
