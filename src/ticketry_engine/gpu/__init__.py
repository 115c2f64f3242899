"""Sparse layers on a GPU: groups of rows that share their columns, in Triton kernels on tensor cores.

`compile_gpu` makes a module of a model. Kernels need Triton, which comes with torch's CUDA builds for Linux.
"""

from __future__ import annotations

from ticketry_engine.gpu.compiled import CompiledGpu, compile_gpu

__all__ = ["CompiledGpu", "compile_gpu"]
