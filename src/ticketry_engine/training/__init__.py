"""Sparse training: layers under a mask run forward and backward in kernels that compute only with retained weights.

Reading order: `sparse_training` (the module), `units` (traces of calls, and which calls run in kernels), `capture`
(regions of a traced call), `region_step` (a region as an autograd function), `emission` (operations of each node),
`plan` (memory and order of operations). The parameters to train are the user's dense tensors, or vectors of their
retained weights (`kept_weights`).
"""
