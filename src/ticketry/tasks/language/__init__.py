"""Language modelling: each next token of a text is predicted from those before it.

`corpus` reads texts and makes tokens of them, `course` is how they are trained on and measured by, `task` puts it
together with a model and a recipe. `facts` tells what texts there are, and needs no torch.
"""
