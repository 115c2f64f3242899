"""Kernels over pixels: a value is one pixel after the other, channels innermost, so that vectors run over channels.

Rows of weights that share their columns, in groups of whole vectors, run at the processor's peak at any batch. The
names here are those of `cpu.planes`, so that a region is emitted in the same way for either layout.
"""

from ticketry_engine.kernels.channels_last.attention import attention
from ticketry_engine.kernels.channels_last.conv import conv, cost
from ticketry_engine.kernels.channels_last.elementwise import affine, apply, copy, elementwise
from ticketry_engine.kernels.channels_last.gather import gather
from ticketry_engine.kernels.channels_last.geometry import Geometry, Pixels
from ticketry_engine.kernels.channels_last.move import constant, load, store
from ticketry_engine.kernels.channels_last.norm import layer_norm, rms_norm, softmax
from ticketry_engine.kernels.channels_last.pool import avg_pool, global_mean, max_pool
from ticketry_engine.kernels.channels_last.rotary import rotary

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
