"""Kernels of a training step on the planar layout, in blocks of sixteen images: sparse products and their gradients.

    forward           y  = W x                                convolution.build_forward
    input gradient    dx = W^T dy                             convolution.build_input_gradient
    weight gradient   dW = dy x^T at retained weights only    convolution.build_weight_gradient

Kernels of the products: float32 `planar.row_sums` and `products`; bfloat16 `products`; with AMX the modules `tile_*`.

A value of a batch has one plane per channel and block of `layer.IMAGES` images (twice as many in bfloat16), from a
network's first layer to its last. A tile of positions stays in registers, as in `kernels.planar`, and may span several
blocks, so that the last layers, with few pixels, fill the registers too.
"""
