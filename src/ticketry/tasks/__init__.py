"""Tasks: data, a model, a loss, a metric and a recipe under one name."""
