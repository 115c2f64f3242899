"""Determines what a model's layers cost under masks: times on this machine, estimated times on a GPU, and file sizes.

`masked_model` compiles one captured model under many masks, and assigns the time of a call and the bytes of a file to
the model's parameters. `gpu_latency` estimates the time of a call on a GPU.
"""
