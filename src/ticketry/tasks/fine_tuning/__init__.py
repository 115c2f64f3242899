"""Fine-tuning a pre-trained network that lies in a folder: tickets whose training starts from its weights.

`labelled_texts` reads texts with their labels, `pretrained` the folder, `task` puts them together with a recipe.
"""
