"""Times dense and sparse engines in one process, and compares sparse engines with the fastest dense engine.

`dense_engines` defines the engines to compare with. `compare` compares. `timing` has the workload, the samples,
their statistics, and the description and cores of the machine. Before an engine is timed, its outputs are compared with
those of eager torch.
"""
