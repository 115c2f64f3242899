"""Training of segments (parts of a training that a key identifies) and the store of their results."""
