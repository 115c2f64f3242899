"""Language modelling: each next token of a text is predicted from those before it.

`corpus` reads and tokenises texts, and `task` combines them with a model and a recipe. `facts` lists the texts and
needs no torch.
"""
