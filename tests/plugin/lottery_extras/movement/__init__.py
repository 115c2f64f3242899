"""Movement pruning, which trains in a way of its own: the search, and the variant of training."""
