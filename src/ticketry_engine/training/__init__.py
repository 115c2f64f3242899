"""Training at the ticket's cost: layers under a mask run forward and backward in kernels that compute what is kept.

`capture` finds the regions of a model that the kernels know; `plan` lays out a region for a batch; `region_step` runs
it as one node of autograd; `sparse_training` is the module around all that. Parameters stay the user's dense tensors.
"""
