"""Train segments, which are ranges of steps of a training, and store their results, each under a key."""
