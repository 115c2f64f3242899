"""Training and the durable store: segments go in, stored results come out, nothing is computed twice."""
