"""Costs of a model's layers under masks: timed on this machine, or estimated for a GPU.

`masked_model` compiles one captured model under many masks, and books a call's time and a file's bytes to its
parameters. `gpu_latency` estimates a call on a GPU.
"""
