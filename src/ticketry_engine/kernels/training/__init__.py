"""Kernels of a training step on the planar layout, in blocks of sixteen images: sparse products and their gradients.

    forward           y  = W x                                convolution.build_forward
    input gradient    dx = W^T dy                             convolution.build_input_gradient
    weight gradient   dW = dy x^T at retained weights only    convolution.build_weight_gradient

In float32, the products are computed by the kernels `planar.row_sums` and `products`; in bfloat16 by `products`; on
processors with AMX by `amx`.

A value (input, output or gradient of a layer, for a whole batch) has one plane per channel and block of `layer.IMAGES`
images; in bfloat16, a block has twice as many images. All layers of a network use this layout. As in `kernels.planar`,
a kernel keeps a tile of positions in registers. A tile may span several blocks, so that the last layers, which have few
pixels, also fill the registers.
"""
