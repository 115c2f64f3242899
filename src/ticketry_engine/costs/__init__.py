"""Costs of a model's layers under masks: timed here, or estimated for a processor or GPU that need not be here.

`masked_model` compiles one captured model under many masks and books a call's time to its parameters. `kernel_work`
counts the work of planned kernels without running them. `gpu_latency` estimates a call on a GPU. `file_sizes` has the
bytes of a model file.
"""
