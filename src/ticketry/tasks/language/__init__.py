"""Language modelling: each next token of a text is predicted from those before it.

`text` reads files, `vocabulary` makes tokens of them, `corpus` has both in three splits; `course` is how they are
trained on and measured by, `task` puts it together with a model and a recipe.
"""
