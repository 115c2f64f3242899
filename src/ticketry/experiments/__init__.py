"""Run experiments from Python or the command line: search, verify, stability, bench, structure, campaigns."""
