"""Kernels over pixels: a value is one pixel after the other, channels innermost, so that vectors run over channels.

Rows of weights that share their columns, in groups of whole vectors, run at the processor's peak at any batch.
"""

from ticketry.engine.cpu.pixels.conv import conv, cost
from ticketry.engine.cpu.pixels.elementwise import add, affine, apply, copy, mul
from ticketry.engine.cpu.pixels.geometry import Geometry, Pixels
from ticketry.engine.cpu.pixels.move import load, store
from ticketry.engine.cpu.pixels.norm import layer_norm, softmax
from ticketry.engine.cpu.pixels.pool import adaptive_avg_pool, avg_pool, global_mean, max_pool
from ticketry.engine.cpu.pixels.widened import attention, attention_bytes

__all__ = [
    "Geometry",
    "Pixels",
    "adaptive_avg_pool",
    "add",
    "affine",
    "apply",
    "attention",
    "attention_bytes",
    "avg_pool",
    "conv",
    "copy",
    "cost",
    "global_mean",
    "layer_norm",
    "load",
    "max_pool",
    "mul",
    "softmax",
    "store",
]
