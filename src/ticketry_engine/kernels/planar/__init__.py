"""Kernels on the planar layout: each channel is one plane, images innermost.

    plane of a channel:   [rows, columns, images] float32        vectors run over positions and images

A weight row may retain any columns, because a column (an input channel at one tap of the window) is only an address in
a table. The time of a layer is therefore proportional to the number of its retained weights.
"""

from ticketry_engine.kernels.planar.attention import attention
from ticketry_engine.kernels.planar.conv import conv, estimate_cost, scratch_bytes
from ticketry_engine.kernels.planar.elementwise import (
    affine,
    apply_activation,
    copy,
    elementwise,
    layer_norm,
    rms_norm,
    rotary,
    softmax,
)
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.planar.move import gather_elements, load_tensor, store_constant, store_tensor
from ticketry_engine.kernels.planar.pool import avg_pool, global_mean, max_pool

__all__ = [
    "Geometry",
    "Planes",
    "affine",
    "apply_activation",
    "attention",
    "avg_pool",
    "conv",
    "copy",
    "estimate_cost",
    "store_constant",
]
__all__ += [
    "elementwise",
    "gather_elements",
    "global_mean",
    "layer_norm",
    "load_tensor",
    "max_pool",
    "rms_norm",
    "rotary",
]
__all__ += ["scratch_bytes", "softmax", "store_tensor"]
