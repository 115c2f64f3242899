"""How the kernel of a convolution slides over its input."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.engine.cpu.planes.geometry import Geometry

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """(vertical, horizontal) each."""

    size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(cls, size: Pair, stride: int | Pair, padding: int | Pair, dilation: int | Pair) -> Window:
        return cls((size[0], size[1]), _pair(stride), _pair(padding), _pair(dilation))

    @property
    def taps(self) -> list[Pair]:
        return [(row, column) for row in range(self.size[0]) for column in range(self.size[1])]

    @property
    def plain(self) -> bool:
        """Whether each pixel of y reads the one pixel of x at the same place."""
        return self == Window((1, 1), (1, 1), (0, 0), (1, 1))

    def input(self, position: int, tap: int, axis: int) -> int:
        """The row (axis 0) or column of x that a tap reads for a row or column of y."""
        return position * self.stride[axis] + tap * self.dilation[axis] - self.padding[axis]

    def shift(self, tap: Pair, x: Geometry) -> int:
        """Bytes from a pixel of x to the one that a tap reads for the pixel of y that begins there."""
        return x.shift(self.input(0, tap[0], 0), self.input(0, tap[1], 1))

    def meets(self, x: Geometry, y: Geometry, tap: Pair) -> bool:
        """Whether a tap reads a pixel of x for any pixel of y: others only ever see the halo."""
        return all(
            any(0 <= self.input(position, tap[axis], axis) < size for position in range(extent))
            for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width)))
        )

    def held(self, x: Geometry, y: Geometry) -> bool:
        """Whether all that the taps read are pixels and halo of x."""
        for axis, (extent, size) in enumerate(((y.height, x.height), (y.width, x.width))):
            taps = [tap[axis] for tap in self.taps if self.meets(x, y, tap)]
            low = min((self.input(0, tap, axis) for tap in taps), default=0)
            high = max((self.input(extent - 1, tap, axis) for tap in taps), default=0)
            if low < -x.halo or high >= size + x.halo:
                return False
        return True

    def output(self, size: int, axis: int) -> int:
        """Rows or columns of y for those of x."""
        reach = self.dilation[axis] * (self.size[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
