"""Kernels of a training step, over planes of sixteen images: products with sparse weights and their gradients.

A value of a batch is one plane for each channel and each block of `layout.IMAGES` images (twice as many in bfloat16),
from the first layer of a network to its last. A tile of positions is held in registers, as in `cpu.planes`, and may
reach over several blocks, so that the last layers, with few pixels, fill the registers too.
"""
