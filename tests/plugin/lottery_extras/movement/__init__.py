"""Movement pruning, which trains in a custom way: the search, and the variant of training."""
