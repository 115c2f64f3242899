"""Store tensors under their digests, results under the keys of segments, and checkpoints of unfinished segments."""
