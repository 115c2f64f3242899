"""Times dense and sparse engines in one process; a sparse engine's saved time is relative to the fastest dense engine.

`dense_engines` contains the engines to compare with, `timing` the workload, the samples and statistics, `compare` the
comparison, and `machine` describes the processor and chooses cores. Before an engine is timed, its outputs are compared
with those of eager torch.
"""
