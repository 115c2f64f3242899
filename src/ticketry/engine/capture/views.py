"""Chains of views through which the batch wanders, as [T, N, C] or [N * T, C], and comes back to axis 0.

Such a chain is run on the numbers 0, 1, 2, ... in the place of its source's elements. If every example's part of the
result comes from the same example, in the same order, the chain is a reshape, a choice and a transpose of each example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ticketry.engine import aten
from ticketry.engine.capture.convert import Multiple
from ticketry.engine.capture.editor import Editor, base, value_of
from ticketry.engine.graph import Json, Node, node
from ticketry.errors import GraphError

_VIEWS = """
view reshape _unsafe_view view_copy permute transpose swapaxes swapdims movedim moveaxis mT t squeeze unsqueeze select
slice narrow flatten unflatten contiguous clone split split_with_sizes chunk unbind getitem
"""
VIEWS = frozenset(_VIEWS.split())
_BATCHES = (2, 3)
_LARGEST = 1 << 22
"""Elements of an example: larger chains are left to torch."""


@dataclass(frozen=True)
class Chain:
    """Where the elements of a value come from."""

    source: str
    """A value with the batch at axis 0."""
    size: int
    """Elements of an example of the source."""
    run: Callable[[int], Tensor]
    """Number of examples -> number of the source's element at each place of the value"""


def chain_to(editor: Editor, name: str) -> Chain | None:
    """The chain of views that leads to a value from the nearest one with the batch at axis 0."""
    steps: list[Node] = []
    while not is_canonical(editor, name) or not steps:
        maker = editor.makers.get(name)
        if maker is None or maker.native or base(maker) not in VIEWS:
            return None
        found = value_of(maker.attrs["args"][0])
        if found is None:
            return None
        steps.append(maker)
        name = found
    shape = editor.shape(name) or ()
    if prod(size or 1 for size in shape) > _LARGEST:
        return None

    def run(batch: int) -> Tensor:
        sizes = [batch, *(int(size or 0) for size in shape[1:])]
        made = torch.arange(prod(sizes)).view(sizes)
        for one in reversed(steps):
            viewed = value_of(one.attrs["args"][0])
            inputs = [made if value == viewed else number(editor, value, batch) for value in one.inputs]
            made = aten.prepare(one, editor.tensors, "cpu")(*inputs)
        return made

    return Chain(name, prod(int(size or 0) for size in shape[1:]), run)


def is_canonical(editor: Editor, name: str) -> bool:
    """Whether a value is a tensor of floats with the batch at axis 0."""
    return editor.floating(name) and (editor.shape(name) or (0,))[0] is None


def number(editor: Editor, name: str, batch: int) -> int:
    """A size that depends on the number of examples; `GraphError` if it depends on more."""
    one = editor.makers.get(name)
    if one is not None and one.op == "aten.sym_size.int":
        sizes = editor.size(value_of(one.attrs["args"][0]) or "")
        if sizes is not None:
            size = sizes[one.attrs["args"][1]]
            return size.of_batch * batch if isinstance(size, Multiple) else int(size or 0)
    if one is None or not one.op.startswith("operator.") or base(one) == "getitem":
        raise GraphError(f"{name} is no size")
    made = aten.prepare(one, {}, "cpu")(*(number(editor, part, batch) for part in one.inputs))
    return int(made)


def example_map(chain: Chain, layout: Callable[[Tensor, int], Tensor]) -> Tensor | None:
    """For each place of an example of the value its source, counted within the example; None if examples mix.

    Args:
        layout: what puts the batch at axis 0, of (value, number of examples).
    """
    found: Tensor | None = None
    for batch in _BATCHES:
        try:
            made = layout(chain.run(batch), batch)
        except (GraphError, RuntimeError, IndexError, TypeError):
            return None
        if not made.numel() or made.shape[0] != batch:
            return None
        for index in range(batch):
            local = made[index] - index * chain.size
            if found is None:
                found = local
            if found.shape != local.shape or not torch.equal(found, local):
                return None
    if found is None or int(found.min()) < 0 or int(found.max()) >= chain.size:
        return None
    return found


def natively(editor: Editor, source: str, where: Tensor, output: str) -> list[Node] | str | None:
    """Native nodes that put the source's elements at `where` [...] into the value `output` [N, ...].

    Returns:
        Nodes, the last of which makes `output`; the source if it is the same; None if it takes more than a reshape, a
        choice and a transpose.
    """
    shape = editor.shape(source) or ()
    total = prod(int(size or 0) for size in shape[1:])
    if (None, *where.shape) == shape and torch.equal(where.flatten(), torch.arange(total)):
        return source
    parts = _strides(where)
    if parts is None:
        return None
    order = sorted(range(len(parts)), key=lambda index: -parts[index][1])
    cuts = _cuts([parts[index] for index in order], int(where.flatten()[0]), total)
    if cuts is None:
        return None
    return _build(editor, source, output, cuts, order, parts)


def _strides(where: Tensor) -> list[tuple[int, int]] | None:
    """(size, stride) of the axes that `where` has, cut as fine as it takes; None if it is no sum over axes."""
    first = int(where.flatten()[0])
    parts: list[tuple[int, int]] = []
    total = torch.zeros((), dtype=torch.int64)
    for axis in range(where.dim()):
        line = where[tuple(slice(None) if other == axis else 0 for other in range(where.dim()))] - first
        total = total.unsqueeze(-1) + line
        parts += _radix(line.tolist())
    return parts if torch.equal(total + first, where) and all(stride > 0 for _, stride in parts) else None


def _radix(line: list[int]) -> list[tuple[int, int]]:
    """A line of offsets as nested (size, stride), the outermost first."""
    if len(line) == 1:
        return []
    step, length = line[1] - line[0], 2
    while length < len(line) and line[length] - line[length - 1] == step:
        length += 1
    while len(line) % length:
        length -= 1
    return [*_radix(line[::length]), (length, step)]


def _cuts(parts: list[tuple[int, int]], first: int, total: int) -> list[tuple[int, int | None]] | None:
    """The source as axes of (size, which index of it; None: all of them), the outermost first."""
    cuts: list[tuple[int, int | None]] = []
    reach = 1
    for size, stride in reversed(parts):
        if stride % reach:
            return None
        if stride > reach:
            cuts.append((stride // reach, first // reach % (stride // reach)))
        cuts.append((size, None))
        reach = stride * size
    if total % reach:
        return None
    if total > reach:
        cuts.append((total // reach, first // reach))
    return cuts[::-1]


def _build(
    editor: Editor,
    source: str,
    output: str,
    cuts: list[tuple[int, int | None]],
    order: list[int],
    parts: list[tuple[int, int]],
) -> list[Node]:
    nodes: list[Node] = []
    current = source

    def step(op: str, **attrs: Json) -> None:
        nonlocal current
        nodes.append(editor.make(op, (current,), output, **attrs))
        current = nodes[-1].output

    step("reshape", shape=[None, *(size for size, _ in cuts)])
    for axis, (_, chosen) in enumerate(cuts, start=1):
        if chosen is not None:
            step("slice", axis=axis, start=chosen, stop=chosen + 1)
    if any(chosen is not None for _, chosen in cuts):
        step("reshape", shape=[None, *(parts[index][0] for index in order)])
    if order != sorted(order):
        step("transpose", axes=[0, *(1 + order.index(index) for index in range(len(order)))])
    made = editor.shape(output) or ()
    nodes.append(node("reshape", (current,), output, shape=list(made)))
    return nodes
