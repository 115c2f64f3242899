"""Tickets: a mask, the weights that its training starts from, and information about both; as folders and on the hub."""
