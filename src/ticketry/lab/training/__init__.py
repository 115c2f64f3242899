"""Segments (parts of a training that a key identifies), the training loop, and variants of training that change it."""
