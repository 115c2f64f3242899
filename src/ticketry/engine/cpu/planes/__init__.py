"""Kernels over planes: a value is one plane a channel, images innermost, so that vectors run over positions and images.

Any row of weights may keep any columns: an input column is the address of a plane plus a shift, and a table holds it.
"""

from ticketry.engine.cpu.planes.conv import conv
from ticketry.engine.cpu.planes.geometry import Geometry, Planes

__all__ = ["Geometry", "Planes", "conv"]
