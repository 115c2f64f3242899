"""Tickets: a mask, the weights that its training starts from, what is known about both; as folders and on the hub."""
