"""Kernels on the channels-last (NHWC-like) layout: a vector holds channels of one pixel.

    memory of an image:  | pixel (0, 0): c0 c1 c2 ... | pixel (0, 1): c0 c1 c2 ... | ...

If at least a vector of weight rows retain the same columns, convolutions run near the processor's peak at any batch
size. `kernels.planar` has functions with the same names, so that the planner uses both layouts with the same code.
Start reading with `conv`, then `group_conv`.
"""

from ticketry_engine.kernels.channels_last.attention import attention
from ticketry_engine.kernels.channels_last.conv import conv, estimate_cost
from ticketry_engine.kernels.channels_last.elementwise import (
    affine,
    apply_activation,
    copy,
    elementwise,
    layer_norm,
    rms_norm,
    rotary,
    softmax,
)
from ticketry_engine.kernels.channels_last.geometry import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.channels_last.move import gather_elements, load_tensor, store_constant, store_tensor
from ticketry_engine.kernels.channels_last.pool import avg_pool, global_mean, max_pool

__all__ = [
    "ChannelsLastGeometry",
    "ChannelsLastValue",
    "affine",
    "apply_activation",
    "attention",
    "avg_pool",
    "conv",
    "store_constant",
]
__all__ += [
    "copy",
    "elementwise",
    "estimate_cost",
    "gather_elements",
    "global_mean",
    "layer_norm",
    "load_tensor",
    "max_pool",
    "rms_norm",
]
__all__ += ["rotary", "softmax", "store_tensor"]
