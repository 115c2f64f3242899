"""Masks of whole coupled channels: by scores of channels, or refilled from an unstructured mask."""
