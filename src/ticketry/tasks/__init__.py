"""Tasks: each gives data, a model, a loss, a metric and a training recipe a common name."""
