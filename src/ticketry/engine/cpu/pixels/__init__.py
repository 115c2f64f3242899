"""Kernels over pixels: a value is one pixel after the other, channels innermost, so that vectors run over channels.

Rows of weights that share their columns, in groups of whole vectors, run at the processor's peak at any batch.
"""

from ticketry.engine.cpu.pixels.conv import conv, cost
from ticketry.engine.cpu.pixels.geometry import Geometry, Pixels
from ticketry.engine.cpu.pixels.move import load, store

__all__ = ["Geometry", "Pixels", "conv", "cost", "load", "store"]
