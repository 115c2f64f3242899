"""Kernels over pixels: a value is one pixel after the other, channels innermost, so that vectors run over channels.

Rows of weights that share their columns, in groups of whole vectors, run at the processor's peak at any batch. The
names here are those of `cpu.planes`, so that a region is emitted in the same way for either layout.
"""

from ticketry.engine.cpu.pixels.attention import attention
from ticketry.engine.cpu.pixels.conv import conv, cost
from ticketry.engine.cpu.pixels.elementwise import affine, apply, copy, elementwise
from ticketry.engine.cpu.pixels.gather import gather
from ticketry.engine.cpu.pixels.geometry import Geometry, Pixels
from ticketry.engine.cpu.pixels.move import constant, load, store
from ticketry.engine.cpu.pixels.norm import layer_norm, rms_norm, softmax
from ticketry.engine.cpu.pixels.pool import avg_pool, global_mean, max_pool
from ticketry.engine.cpu.pixels.rotary import rotary

__all__ = [
    "Geometry",
    "Pixels",
    "affine",
    "apply",
    "attention",
    "avg_pool",
    "constant",
    "conv",
    "copy",
    "cost",
    "elementwise",
    "gather",
    "global_mean",
    "layer_norm",
    "load",
    "max_pool",
    "rms_norm",
    "rotary",
    "softmax",
    "store",
]
