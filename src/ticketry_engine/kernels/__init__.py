"""Sparse and dense kernels for CPUs, emitted as LLVM IR for the host's vectors, and the native program of them."""
