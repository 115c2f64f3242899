"""Where segments are trained."""
