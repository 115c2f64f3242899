"""Experiments, from Python and the command line: search, verify, stability, bench, structure, campaigns."""
