"""Physically smaller models: what stays of a model, as data; groups tried out; the model without the rest."""
