"""Image classification.

`task` has images in memory, `folder` those that are read from disk on demand; `facts` lists the data
sets and how networks are trained on them, and needs no torch.
"""
