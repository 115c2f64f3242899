"""Timing side by side, in one process: dense engines, and what the sparse ones save against the fastest of them.

`dense` and `runtimes` have the dense engines, `rivals` all of them by name, `compare` runs them in turns, `timing` says
what a sample is, `curve` draws time against density. Outputs are compared with eager torch before anything is timed.
"""
