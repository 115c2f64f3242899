"""The planner: which nodes run in the engine, in which layout, where their values are stored, and by which kernels."""
