"""Segments and how they are trained: the loop, and the variants of training that act on it."""
