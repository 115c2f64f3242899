"""Dependency following: which indices of which tensors are one channel, found by running a model once."""
