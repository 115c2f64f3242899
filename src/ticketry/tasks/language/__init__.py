"""Language modelling: predict each token of a text from the tokens before it.

`corpus` reads and tokenises texts, and `task` combines a text with a model and a recipe. The texts are listed in
`ticketry.tasks.facts`, which needs no torch.
"""
