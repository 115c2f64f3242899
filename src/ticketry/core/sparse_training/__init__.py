"""Sparse training: mask enforcement, gradual pruning, mask updates and sparsity penalties."""
