"""LLVM IR kernels for CPUs, sparse and dense, and the native program that runs them.

Each kernel is a frozen dataclass that writes its own LLVM IR (`emitter`), specialised for one processor (`target`).
`jit` compiles and caches the machine code; `program` links kernels and their tables into one native call per network.

    planar/          NCHW-like layout, images innermost
    channels_last/   NHWC-like layout, channels innermost
    training/        forward and backward kernels of a training step
    norms            layer norm, RMS norm and softmax, for both layouts
"""
