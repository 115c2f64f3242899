"""The engine: a masked model captured as a small graph, planned, and run by sparse kernels made for its masks.

Uses the core, and nothing of the lab: a model and a mask are enough.
"""
