"""Kernels over pixels: a value is one pixel after the other, channels innermost, so that vectors run over channels.

Rows of weights that share their columns, in groups of whole vectors, run at the processor's peak at any batch.
"""
