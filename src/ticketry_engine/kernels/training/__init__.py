"""Kernels of a training step on the planar layout, in blocks of sixteen images: sparse products and their gradients.

    forward           y  = W x                 convolution.forward          (row_sums, pair_sums, tile_sums)
    input gradient    dx = W^T dy              convolution.input_gradient   (the same, tile_spread)
    weight gradient   dW = dy x^T at retained weights only     convolution.weight_gradient  (products, tile_products)

A value of a batch has one plane per channel and block of `layout.IMAGES` images (twice as many in bfloat16), from a
network's first layer to its last. A tile of positions stays in registers, as in `kernels.planar`, and may span several
blocks, so that the last layers, with few pixels, fill the registers too.
"""
