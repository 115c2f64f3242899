"""From a graph to programs: which nodes the engine runs, how their values lie in memory, and by which kernels."""
