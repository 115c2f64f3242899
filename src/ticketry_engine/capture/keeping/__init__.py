"""Captures that are kept in the user's cache, and what tells a model from all others."""
