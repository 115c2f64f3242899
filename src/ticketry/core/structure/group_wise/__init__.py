"""Masks of row groups: rows of a layer that keep the same columns, made from an unstructured mask."""
