"""Fine-tuning a pre-trained network that lies in a folder: tickets whose training starts from its weights.

`labelled` reads texts with their labels, `pretrained` the folder, `task` puts them together with a recipe.
"""
