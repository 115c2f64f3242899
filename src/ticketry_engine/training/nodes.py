"""What a region of a network consists of: layers between named values, and the shapes that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.window import Pair, Window

Shape = tuple[int, int, int]
"""Channels, rows, columns of a value: of one without pixels, rows and columns are 1."""


@dataclass(frozen=True)
class Conv:
    """A convolution, or a linear layer as one of a single pixel."""

    x: str
    y: str
    module: str
    inputs: int
    outputs: int
    window: Window
    groups: int
    bias: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class Norm:
    """A batch norm with the batch's own statistics, then perhaps plus another value, then perhaps ReLU."""

    x: str
    y: str
    module: str
    residual: str | None = None
    relu: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True)
class LayerNorm:
    """A norm over the features of each token."""

    x: str
    y: str
    module: str
    epsilon: float
    scale: bool
    shift: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class Relu:
    x: str
    y: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class Act:
    """Another activation, by its name in `cpu.activations`."""

    x: str
    y: str
    act: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


@dataclass(frozen=True)
class Sum:
    """Two values, added."""

    x: str
    other: str
    y: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x, self.other)


@dataclass(frozen=True)
class Pool:
    """The largest value or the mean of windows; of the whole plane without a size.

    Without a stride windows lie side by side; with one, the largest value counts. Pixels outside the image never count.
    """

    x: str
    y: str
    size: Pair | None
    largest: bool
    stride: Pair | None = None
    padding: Pair = (0, 0)
    ceil: bool = False
    """Whether a last window that reaches over the border counts."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.x,)


Node = Conv | Norm | LayerNorm | Relu | Act | Sum | Pool


@dataclass(frozen=True)
class Region:
    """Layers that run one after the other without leaving the kernels' layout."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tokens: bool = False
    """Whether values are tokens x features, with any dimensions before the last, and not images x channels (x …)."""
    flat: frozenset[str] = frozenset()
    """Values that were images x channels for the model when its graph was made, with one pixel here. With images of
    another size there may be more of them, which the model would read as features, or refuse."""

    @cached_property
    def parameters(self) -> list[tuple[str, str]]:
        """(module, attribute) of every parameter, in order, each once."""
        found: dict[tuple[str, str], None] = {}
        for node in self.nodes:
            if isinstance(node, Conv):
                found[node.module, "weight"] = None
                if node.bias:
                    found[node.module, "bias"] = None
            elif isinstance(node, Norm):
                found[node.module, "weight"] = found[node.module, "bias"] = None
            elif isinstance(node, LayerNorm):
                named = {"weight": node.scale, "bias": node.shift}
                found |= {(node.module, name): None for name, there in named.items() if there}
        return list(found)

    def shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape of every value.

        Raises:
            EngineError: they do not fit the layers.
        """
        found = dict(inputs)
        for node in self.nodes:
            found[node.y] = _shape(node, [found[name] for name in node.reads])
        for name in self.flat & found.keys():
            if found[name][1:] != (1, 1):
                raise EngineError(f"{name}: {found[name][1:]} pixels of each channel, where one is needed")
        return found


def _shape(node: Node, reads: Sequence[Shape]) -> Shape:
    channels, height, width = reads[0]
    if isinstance(node, Conv):
        if channels != node.inputs:
            raise EngineError(f"{node.module}: {channels} channels come in, not {node.inputs}")
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                (height, width),
                node.window.size,
                node.window.stride,
                node.window.padding,
                node.window.dilation,
                strict=True,
            )
        )
        if min(rows, columns) < 1:
            raise EngineError(f"{node.module}: an image of {height} x {width} is smaller than its kernel")
        return node.outputs, rows, columns
    if isinstance(node, Pool):
        size = node.size or (height, width)
        sizes = zip((height, width), size, node.stride or size, node.padding, strict=True)
        rows, columns = (_windows(node, *axis) for axis in sizes)
        if min(rows, columns) < 1:
            raise EngineError(f"{node.y}: an image of {height} x {width} is smaller than the pooling's window")
        return channels, rows, columns
    if any(shape != reads[0] for shape in reads[1:]):
        raise EngineError(f"{node.y}: values of the shapes {list(reads)} are added; they have to be the same")
    return reads[0]


def _windows(node: Pool, extent: int, size: int, stride: int, padding: int) -> int:
    """How many windows lie along an axis. Each begins in the image or in the padding before it."""
    room = extent + 2 * padding - size
    count = (-(-room // stride) if node.ceil else room // stride) + 1
    return count - 1 if node.ceil and (count - 1) * stride >= extent + padding else count


def fused(region: Region) -> Region:
    """The region with sums and ReLUs behind a norm made part of it, where nobody else reads what is between."""
    nodes, uses = list(region.nodes), _uses(region)
    number = 0
    while number < len(nodes):
        node = nodes[number]
        if isinstance(node, (Relu, Sum)):
            made = _into_norm(nodes, node, uses)
            if made is not None:
                before, norm = made
                nodes[number] = norm
                del nodes[before]
                continue
        number += 1
    return replace(region, nodes=tuple(nodes))


def _into_norm(nodes: Sequence[Node], node: Relu | Sum, uses: Mapping[str, int]) -> tuple[int, Norm] | None:
    """The place of the norm that a node can be a part of, and the norm with it."""
    for read in node.reads:
        for place, norm in enumerate(nodes):
            if norm.y != read or not isinstance(norm, Norm) or norm.relu or uses[read] != 1:
                continue
            if isinstance(node, Relu):
                return place, replace(norm, y=node.y, relu=True)
            if norm.residual is None and node.x != node.other:
                other = node.other if read == node.x else node.x
                return place, replace(norm, y=node.y, residual=other)
    return None


def _uses(region: Region) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in [*(name for node in region.nodes for name in node.reads), *region.outputs]:
        counts[name] = counts.get(name, 0) + 1
    return counts
