"""A convolution's shape, and where its inputs lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ticketry.engine.cpu.pixels.geometry import FLOAT, HALF, Pixels
from ticketry.engine.cpu.pixels.tiles import Plane, Window
from ticketry.errors import EngineError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """A convolution's shape."""

    x: Pixels
    y: Pixels
    residual: Pixels | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def plane(self) -> Plane:
        sizes = (self.x.geometry.height, self.x.geometry.width)
        rows, columns = (
            Window(*axis) for axis in zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return Plane(rows, columns)

    @property
    def pairs(self) -> bool:
        """Whether inputs are bfloat16, which are multiplied two at a time: a column is then two neighbouring channels
        of a tap, the last of an odd number of channels with nothing."""
        return self.x.geometry.item == HALF

    @property
    def columns(self) -> int:
        """Columns of a tap."""
        return -(-self.x.channels // 2) if self.pairs else self.x.channels

    @property
    def reach(self) -> int:
        """Words from the input of the first column to that of the last."""
        return int(self.offsets(self.columns).max(initial=0))

    def check(self, outputs: int, inputs: int) -> None:
        """Raises EngineError where the values do not fit a convolution of so many channels."""
        if inputs != self.x.channels:
            raise EngineError(f"a convolution of {inputs} channels, its input has {self.x.channels}")
        shape = (outputs, self.plane.rows.outputs, self.plane.columns.outputs)
        mine = (self.y.channels, self.y.geometry.height, self.y.geometry.width)
        if shape != mine:
            raise EngineError(f"a convolution has outputs of shape {shape}, its place holds {mine}")
        if max(self.padding) > self.x.geometry.halo:
            raise EngineError(
                f"a padding of {self.padding} needs an input with such a halo, not {self.x.geometry.halo}"
            )
        if self.residual is not None and not self.residual.like(self.y):
            raise EngineError("a residual has the shape of the output")

    def offsets(self, columns: int) -> Array:
        """Of each column [taps * columns]: words of 4 bytes from the input of tap 0, channel 0."""
        geometry = self.x.geometry
        rows = np.arange(self.kernel[0]) * self.dilation[0] * geometry.row
        places = np.arange(self.kernel[1]) * self.dilation[1] * geometry.pixel
        taps = (rows[:, None] + places).reshape(-1, 1) // FLOAT
        found: Array = (taps + np.arange(columns)).reshape(-1)
        return found
