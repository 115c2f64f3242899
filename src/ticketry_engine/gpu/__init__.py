"""Sparse layers on a GPU: groups of rows that retain the same columns run in Triton kernels on tensor cores.

`compile_gpu` compiles a model into a module. The kernels need Triton, which is part of torch's CUDA builds for Linux.
Reading order: `compiled`, `plan` (which kernel runs a layer), `tables` (packed weights), `kernels`.
"""

from __future__ import annotations

from ticketry_engine.gpu.compiled import CompiledGpu, compile_gpu

__all__ = ["CompiledGpu", "compile_gpu"]
