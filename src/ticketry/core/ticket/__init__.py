"""Tickets: a mask with the weights from which it is trained; their folders, and the Hugging Face hub."""
