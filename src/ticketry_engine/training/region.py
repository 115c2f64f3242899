"""Regions of a training step: nodes that run in kernels, forward and backward, with their shapes and lifetimes.

Nodes are those of `ir`; their weights have the names of the model's parameters. A region may contain ``batch_norm``,
which computes the statistics of the batch and is not used for inference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ticketry_engine.errors import EngineError, GraphError
from ticketry_engine.ir import Node, Region, last_uses
from ticketry_engine.ir.native import NATIVE
from ticketry_engine.kernels.window import Window

PlaneShape = tuple[int, int, int]
"""Channels, rows and columns of a value; a value without pixels has 1 row and 1 column."""

LAYERS = ("conv2d", "linear")
"""Operations whose weights a mask may prune."""


def layer_name(node: Node) -> str:
    """Return the name of the module whose weight a node uses: a convolution, linear layer or norm."""
    return node.weights["weight"].rpartition(".")[0]


@dataclass(frozen=True)
class TrainingRegion(Region):
    """A region of a training step; values keep the kernels' memory layout between its nodes."""

    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each layer's weight -> its shape."""
    tokens: bool = False
    """Whether values are [..., features] rather than [images, channels, ...]."""
    flat: frozenset[str] = frozenset()
    """Names of the values that were [images, channels] in the traced call, and must have a single pixel per channel.

    With images of another size, the model would flatten more features, or raise an error.
    """

    @cached_property
    def parameters(self) -> list[str]:
        """Names of all parameters, in the order of their first use, without repetition."""
        return list(dict.fromkeys(name for node in self.nodes for name in node.weights.values()))

    def window(self, node: Node) -> Window:
        """Return the window of a convolution, a linear layer, or a pooling that has a kernel size."""
        size = node.attrs["kernel"] if "kernel" in node.attrs else self.weights[node.weights["weight"]][2:] or (1, 1)
        names = ("stride", "padding", "dilation")
        return Window(tuple(size), **{name: tuple(node.attrs[name]) for name in names if name in node.attrs})

    def shapes(self, inputs: Mapping[str, PlaneShape]) -> dict[str, PlaneShape]:
        """Return the shape of every value, given the shapes of the inputs.

        Raises:
            EngineError: if the inputs do not fit the layers.
        """
        found = dict(inputs)
        for node in self.nodes:
            found[node.output] = self._shape(node, [found[name] for name in node.inputs])
        for name in self.flat & found.keys():
            if found[name][1:] != (1, 1):
                raise EngineError(f"{name} has {found[name][1:]} pixels per channel, but the model reads it as one")
        return found

    def _shape(self, node: Node, reads: Sequence[PlaneShape]) -> PlaneShape:
        weights = {role: self.weights[name] for role, name in node.weights.items() if name in self.weights}
        if node.op == "linear":
            outputs, inputs = weights["weight"]
            if reads[0][0] != inputs:
                raise EngineError(f"{layer_name(node)}: {reads[0][0]} channels come in, not {inputs}")
            return outputs, *reads[0][1:]
        if any(shape != reads[0] for shape in reads[1:]):
            raise EngineError(f"{node.output}: cannot add values of the shapes {list(reads)}, they have to be equal")
        if node.op not in ("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool"):
            return reads[0]
        try:
            _, *made = NATIVE[node.op].infer(node.attrs, [(None, *shape) for shape in reads], weights)
        except GraphError as error:
            name = layer_name(node) if node.weights else node.output
            raise EngineError(f"{name}: {error} (an image of {reads[0][1]} x {reads[0][2]})") from None
        channels, rows, columns = (int(size or 0) for size in made)
        return channels, rows, columns


def fuse_norms(region: TrainingRegion) -> TrainingRegion:
    """Return the region with sums and ReLUs fused into the batch norms before them.

    A sum or ReLU is fused if nothing else reads the norm's output.
    """
    nodes, uses = list(region.nodes), region.uses
    number = 0
    while number < len(nodes):
        fused = _fused_norm(nodes, nodes[number], uses)
        if fused is None:
            number += 1
            continue
        norm, nodes[number] = fused
        del nodes[norm]
    return replace(region, nodes=tuple(nodes))


def _fused_norm(nodes: Sequence[Node], node: Node, uses: Mapping[str, int]) -> tuple[int, Node] | None:
    """Return the index of the norm into which `node` can be fused, and the fused norm; None if there is none."""
    relu = node.op == "act" and node.attrs["act"] == "relu"
    if not relu and node.op != "add":
        return None
    for read in node.inputs:
        for number, norm in enumerate(nodes):
            if norm.output != read or norm.op != "batch_norm" or norm.attrs["act"] or uses[read] != 1:
                continue
            if relu:
                return number, replace(norm, output=node.output, attrs={**norm.attrs, "act": "relu"})
            if len(norm.inputs) == 1 and node.inputs[0] != node.inputs[1]:
                other = node.inputs[read == node.inputs[0]]
                return number, replace(norm, inputs=(norm.inputs[0], other), output=node.output)
    return None


# -- lifetimes ---------------------------------------------------------------------------------------------------------


def values_read_in_backward(node: Node) -> tuple[str, ...]:
    """Return the values that a node's backward pass reads, in addition to the gradient of the node's output."""
    if node.op == "batch_norm":
        return (node.inputs[0], node.output) if node.attrs["act"] and len(node.inputs) > 1 else node.inputs[:1]
    if node.op == "act":
        return (node.output,) if node.attrs["act"] == "relu" else node.inputs
    return node.inputs if node.op in (*LAYERS, "layer_norm", "max_pool2d") else ()


@dataclass(frozen=True)
class Lifetimes:
    """When the values of a region are no longer needed; the first two lists have one entry per node."""

    after_forward: Sequence[Sequence[str]]
    """For each node, the values that are not needed after the node's forward pass, or not until they are recomputed."""
    after_backward: Sequence[Sequence[str]]
    """For each node, the values that are not needed after the node's backward pass."""
    after_outputs: Sequence[str]
    """Outputs that the backward pass does not read."""
    recomputed: dict[str, Node]
    """Value that is recomputed in the backward pass -> the batch norm that computes the value.

    This takes one pass over the norm's input.
    """
    passing: dict[str, Node]
    """Recomputed value that only the layer after the norm reads -> that layer.

    If the norm and the layer run block by block, memory for one block of the value is enough.
    """


def compute_lifetimes(region: TrainingRegion) -> Lifetimes:
    """Return the lifetimes of a region's values for the case that all nodes have a backward pass."""
    nodes, outputs = region.nodes, set(region.outputs)
    back = {name for node in nodes for name in values_read_in_backward(node)}
    recomputed = {
        node.output: node
        for node in nodes
        if node.op == "batch_norm" and len(node.inputs) == 1 and node.output in back - outputs
    }
    forward = last_uses([(node.inputs, (node.output,)) for node in nodes], outputs | (back - recomputed.keys()))
    backward = last_uses([(values_read_in_backward(node), ()) for node in reversed(nodes)], ())
    passing = {
        norm.output: layer
        for norm, layer in itertools.pairwise(nodes)
        if norm.output in recomputed
        and layer.op in LAYERS
        and [node for node in nodes if norm.output in node.inputs] == [layer]
    }
    after_outputs = [name for name in region.outputs if name not in back]
    return Lifetimes(forward, backward[::-1], after_outputs, recomputed, passing)
