"""Kernels over planes: a value is one plane a channel, images innermost, so that vectors run over positions and images.

Any row of weights may keep any columns: an input column is the address of a plane plus a shift, and a table holds it.
"""

from ticketry.engine.cpu.planes.attention import attention
from ticketry.engine.cpu.planes.conv import conv, cost, scratch_bytes
from ticketry.engine.cpu.planes.elementwise import affine, apply, copy, elementwise, rotary
from ticketry.engine.cpu.planes.gather import gather
from ticketry.engine.cpu.planes.geometry import Geometry, Planes
from ticketry.engine.cpu.planes.move import constant, load, store
from ticketry.engine.cpu.planes.norm import layer_norm, rms_norm, softmax
from ticketry.engine.cpu.planes.pool import avg_pool, global_mean, max_pool

__all__ = [
    "Geometry",
    "Planes",
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
    "scratch_bytes",
    "softmax",
    "store",
]
