"""Times dense and sparse engines in one process; a sparse engine's saved time is relative to the fastest dense engine.

`dense_engines` contains the engines to compare with, `compare` the comparison, and `timing` the workload, the samples,
their statistics, and the description and cores of the machine. Before an engine is timed, its outputs are compared with
those of eager torch.
"""
