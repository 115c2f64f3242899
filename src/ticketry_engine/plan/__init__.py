"""Plans a graph: chooses the nodes that run in kernels, the memory layout, the place of each value, and the kernels."""
