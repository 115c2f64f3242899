"""The durable store: content-addressed tensors, results by segment key, locks, checkpoints inside segments."""
