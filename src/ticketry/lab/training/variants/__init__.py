"""Variants of training that several searches use: a mask that is held, a network without its channels, a penalty."""
