"""Transposed convolutions, written as convolutions of the small image whose outputs are moved to where they belong.

Along one axis, pixel i times weight t is added at place s i + d t - p (s: stride, d: dilation, p: padding). To places
s m + r, phase r, come weights with d t - p = r + s j alone, of pixels m - j: a convolution with stride 1 that has a tap
for each j. The phases of both axes are channels of one convolution, and lie interleaved afterwards (Shi et al.,
"Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural network", CVPR
2016, section 3). Not every phase has a weight on every tap: there are zeros, as those that a mask makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ticketry_engine.capture.editor import Editor, Found, NoMatchError, arguments, base, finished, need, rewrite
from ticketry_engine.capture.lower_layers import weights_of
from ticketry_engine.capture.lower_pools import pair
from ticketry_engine.ir import Graph, Json, Node

_FOLDED = ("affine", "act")
"""What is computed with a convolution before it."""


def lower_transposed(graph: Graph) -> Graph:
    """The graph without transposed convolutions over one axis or two, with the norms and activations behind them."""
    readers = {name: one.op for one in graph.nodes for name in one.inputs}
    return rewrite(graph, partial(_lower, readers, {}))


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution, as the convolution of its phases has it."""

    size: int
    """Of the input."""
    kernel: int
    stride: int
    dilation: int
    padding: int
    made: int
    """Size of what is made."""

    def place(self, weight: int) -> tuple[int, int]:
        """The phase that a weight is of, and how far behind the place's own pixel the pixel lies that it multiplies."""
        behind, phase = divmod(self.dilation * weight - self.padding, self.stride)
        return phase, -behind

    @property
    def places(self) -> int:
        """Of a phase."""
        return -(-self.made // self.stride)

    @property
    def room(self) -> int:
        """Padding of the convolution on each side: all pixels that weights multiply are there, and all places made."""
        return max(0, -self._first, self.places - self.size + self._last)

    @property
    def taps(self) -> int:
        return self.room + self._last + 1

    @property
    def _first(self) -> int:
        """Of the pixels that weights multiply; they come one before the other."""
        return self.place(self.kernel - 1)[1]

    @property
    def _last(self) -> int:
        return self.place(0)[1]


@dataclass(frozen=True)
class _Transposed:
    """A transposed convolution, and what was folded into it."""

    x: str
    name: str
    """Of its weight."""
    weight: Tensor
    """[I, O / groups, kh, kw]"""
    bias: Tensor | None
    axes: tuple[_Axis, _Axis]
    groups: int
    act: Json = None

    def scaled(self, scale: Tensor, shift: Tensor) -> _Transposed:
        """With what it makes scaled and shifted by channel. Rounded once, from float64."""
        kind, (inputs, outputs, *_) = self.weight.dtype, self.weight.shape
        by_group = scale.view(self.groups, 1, outputs, 1, 1)
        weight = self.weight.double().view(self.groups, inputs // self.groups, *self.weight.shape[1:]) * by_group
        bias = shift if self.bias is None else self.bias.double() * scale + shift
        return replace(self, weight=weight.view_as(self.weight).to(kind), bias=bias.to(kind))

    def phases(self) -> Tensor:
        """The convolution's weight [groups * phases * (O / groups), I / groups, taps, taps]."""
        inputs, outputs, *kernel = self.weight.shape
        down, across = self.axes
        made = self.weight.new_zeros(
            self.groups, down.stride, across.stride, outputs, inputs // self.groups, down.taps, across.taps
        )
        given = self.weight.view(self.groups, inputs // self.groups, outputs, *kernel).transpose(1, 2)
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                (phase, step), (other_phase, other_step) = down.place(row), across.place(column)
                made[:, phase, other_phase, :, :, down.room + step, across.room + other_step] = given[..., row, column]
        return made.flatten(0, 3)

    def nodes(self, editor: Editor, output: str) -> list[Node]:
        """What makes `output`."""
        down, across = self.axes
        strides, outputs = (down.stride, across.stride), self.weight.shape[1]
        batch, *sizes = editor.shape(self.x) or ()
        nodes: list[Node] = []

        def then(op: str, weights: Mapping[str, str] | None = None, **attrs: Json) -> list[int]:
            """Another node, and the sizes of what it makes."""
            nodes.append(editor.make(op, (nodes[-1].output if nodes else self.x,), output, weights, **attrs))
            return [int(size or 0) for size in (editor.shape(nodes[-1].output) or ())[1:]]

        if len(sizes) == 2:
            then("reshape", shape=[batch, sizes[0], 1, sizes[1]])
        weights = {"weight": editor.tensor(f"{self.name}.phases", self.phases())}
        if self.bias is not None:
            by_group = self.bias.view(self.groups, 1, outputs).expand(-1, strides[0] * strides[1], -1)
            weights["bias"] = editor.tensor(f"{self.name.removesuffix('weight')}bias.phases", by_group.flatten())
        padding = [down.room, across.room]
        setting: dict[str, Json] = {"stride": [1, 1], "padding": padding, "dilation": [1, 1], "groups": self.groups}
        _, height, width = then("conv2d", weights, act=self.act, **setting)
        if strides != (1, 1):
            then("reshape", shape=[batch, self.groups, *strides, outputs, height, width])
            then("transpose", axes=[0, 1, 4, 5, 2, 6, 3])
            then("reshape", shape=[batch, self.groups * outputs, height * strides[0], width * strides[1]])
        for number, axis in enumerate(self.axes, start=2):
            if axis.made != (editor.shape(nodes[-1].output) or ())[number]:
                then("slice", axis=number, start=0, stop=axis.made)
        if len(sizes) == 2:
            then("reshape", shape=list(editor.shape(output) or ()))
        return nodes


def _lower(readers: Mapping[str, str], known: dict[str, _Transposed], editor: Editor, one: Node) -> list[Node] | str:
    """The nodes of a transposed convolution with what follows it, where nothing else reads what it makes."""
    found = _followed(known, editor, one) if one.native else _transposed(editor, one)
    if found.act is None and editor.uses[one.output] == 1 and readers.get(one.output) in _FOLDED:
        known[one.output] = found
        raise NoMatchError  # it waits for that
    return finished(found.nodes(editor, one.output), found.x, one.output)


def _transposed(editor: Editor, one: Node) -> _Transposed:
    name = base(one)
    need(name in ("conv_transpose1d", "conv_transpose2d", "convolution"))
    found = arguments(one)
    need(name != "convolution" or found["transposed"])
    (x,), weights = editor.floats(one, found["input"]), weights_of(editor, found)
    weight = editor.tensors[weights["weight"]]
    shape, made = editor.shape(x) or (), editor.shape(one.output) or ()
    need(weight.dim() == len(shape) == len(made) and len(shape) in (3, 4) and all(shape[1:]) and all(made[1:]))
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
    bias = editor.tensors[weights["bias"]] if "bias" in weights else None
    axes = _axes(found, weight, shape, made)
    return _Transposed(x, weights["weight"], weight, bias, axes, int(found["groups"]))


def _axes(
    found: Found, weight: Tensor, shape: tuple[int | None, ...], made: tuple[int | None, ...]
) -> tuple[_Axis, _Axis]:
    """Height and width; a signal has a height of 1."""
    stride, dilation, padding = (pair(found[role]) for role in ("stride", "dilation", "padding"))

    def axis(number: int) -> _Axis:
        """Counted from the end."""
        size, places = int(shape[number] or 0), int(made[number] or 0)
        return _Axis(size, weight.shape[number], stride[number], dilation[number], padding[number], places)

    return (axis(-2) if len(shape) == 4 else _Axis(1, 1, 1, 1, 0, 1)), axis(-1)


def _followed(known: Mapping[str, _Transposed], editor: Editor, one: Node) -> _Transposed:
    """With a norm or an activation behind."""
    found = known.get(one.inputs[0]) if one.op in _FOLDED else None
    if found is None:
        raise NoMatchError
    if one.op == "affine":
        scale, shift = (editor.tensors[one.weights[role]].double() for role in ("scale", "shift"))
        found = found.scaled(scale, shift)
    return replace(found, act=one.attrs["act"])
