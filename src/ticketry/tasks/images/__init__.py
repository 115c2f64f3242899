"""Image classification.

`task` has images in memory, `folder` those that are read from disk when they are asked for; `facts` tells what data
sets there are and how networks are trained on them, and needs no torch.
"""
