"""Times dense and sparse engines side by side in one process; time saved is against the fastest dense engine.

`workload` has the model and inputs, `dense_engines` the engines to compare with, `timing` the samples and statistics,
`compare` the comparison, `machine` the processor and its cores. Outputs are compared with eager torch before timing.
"""
