"""Which values of a region are needed when: on the way there, on the way back, and what is computed again for that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ticketry_engine.training.nodes import Act, Conv, LayerNorm, Node, Norm, Pool, Region, Relu


def read_back(node: Node) -> tuple[str, ...]:
    """The values that a node's gradients are computed from, beside the gradient that comes to it."""
    if isinstance(node, Norm):
        return (node.x, node.y) if node.relu and node.residual is not None else (node.x,)
    if isinstance(node, Relu):
        return (node.y,)
    if isinstance(node, (Conv, LayerNorm, Act)) or (isinstance(node, Pool) and node.largest):
        return (node.x,)
    return ()


@dataclass(frozen=True)
class Lifetimes:
    """Of values, by the number of a node."""

    after_forward: Sequence[Sequence[str]]
    """That nobody needs any more when the node has run on the way there: before the way back, or at all."""
    after_backward: Sequence[Sequence[str]]
    """The same on the way back."""
    after_outputs: Sequence[str]
    """When outputs have been read, between the two."""
    passing: dict[str, Conv]
    """Of `again`, those that one convolution alone reads, right behind the norm, with this one: a block of them is all
    that is ever needed, if the operations of both go block by block."""
    again: dict[str, Norm]
    """That are not kept but computed again on the way back, before the first node that reads them: what a batch norm
    makes of its input, which is kept anyway. It takes one pass over the value."""


def lifetimes(region: Region) -> Lifetimes:
    """Those of a region whose nodes all run on the way back."""
    nodes = region.nodes
    there = dict.fromkeys(region.inputs, 0)
    back: dict[str, int] = {}
    for number, node in enumerate(nodes):
        there |= dict.fromkeys((*node.reads, node.y), number)
        for name in read_back(node):
            back.setdefault(name, number)  # the first one is the last on the way back
    again = {
        node.y: node
        for node in nodes
        if isinstance(node, Norm) and node.residual is None and node.y in back and node.y not in region.outputs
    }
    forward: list[list[str]] = [[] for _ in nodes]
    backward: list[list[str]] = [[] for _ in nodes]
    for name, number in there.items():
        if name not in region.outputs and (name not in back or name in again):
            forward[number].append(name)
    for name, number in back.items():
        backward[number].append(name)
    outputs = [name for name in region.outputs if name not in back]
    passing = {
        one.y: following
        for one, following in itertools.pairwise(nodes)
        if one.y in again and isinstance(following, Conv) and [n for n in nodes if one.y in n.reads] == [following]
    }
    return Lifetimes(forward, backward, outputs, passing, again)
