"""Chains of views from a value with the batch at axis 0, followed element by element, and written natively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ticketry_engine.capture.editor import Editor, NoMatchError, base, need, value_of
from ticketry_engine.capture.tracing.program import Multiple
from ticketry_engine.errors import GraphError
from ticketry_engine.ir import Json, Node, aten, node

_VIEWS = """
view reshape _unsafe_view view_copy permute transpose swapaxes swapdims movedim moveaxis mT t squeeze unsqueeze select
slice narrow flatten unflatten contiguous clone split split_with_sizes chunk unbind getitem
"""
VIEWS = frozenset(_VIEWS.split())
_BATCHES = (2, 3)
_LARGEST = 1 << 22
"""Elements of an example: larger chains are left to torch."""


@dataclass(frozen=True)
class ViewChain:
    """The source of a value's elements."""

    source: str
    """A value with the batch at axis 0."""
    size: int
    """Elements of an example of the source."""
    run: Callable[[int], Tensor]
    """Number of examples -> number of the source's element at each place of the value"""


def chain_to(editor: Editor, name: str) -> ViewChain:
    """Return the chain of views that leads to a value from the nearest one with the batch at axis 0.

    Raises:
        NoMatchError: if there is none, or it is too long to be evaluated.
    """
    steps: list[Node] = []
    while not is_canonical(editor, name) or not steps:
        maker = editor.made_by(name, *VIEWS)
        found = value_of(maker.attrs["args"][0]) if not maker.native else None
        if found is None:
            raise NoMatchError
        steps.append(maker)
        name = found
    shape = editor.shape(name) or ()
    need(prod(size or 1 for size in shape) <= _LARGEST)

    def run(batch: int) -> Tensor:
        sizes = [batch, *(int(size or 0) for size in shape[1:])]
        made = torch.arange(prod(sizes)).view(sizes)
        for one in reversed(steps):
            viewed = value_of(one.attrs["args"][0])
            inputs = [made if value == viewed else number(editor, value, batch) for value in one.inputs]
            made = aten.prepare(one, editor.tensors, "cpu")(*inputs)
        return made

    return ViewChain(name, prod(int(size or 0) for size in shape[1:]), run)


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


def example_map(chain: ViewChain, layout: Callable[[Tensor, int], Tensor]) -> Tensor:
    """For each place of an example of the value its source, counted within the example.

    Args:
        layout: what puts the batch at axis 0, of (value, number of examples).

    Raises:
        NoMatchError: examples mix.
    """
    found: Tensor | None = None
    for batch in _BATCHES:
        try:
            made = layout(chain.run(batch), batch)
        except (GraphError, RuntimeError, IndexError, TypeError):
            raise NoMatchError from None
        need(made.numel() and made.shape[0] == batch)
        for index in range(batch):
            local = made[index] - index * chain.size
            found = local if found is None else found
            need(found.shape == local.shape and torch.equal(found, local))
    assert found is not None
    need(int(found.min()) >= 0 and int(found.max()) < chain.size)
    return found


def natively(editor: Editor, source: str, where: Tensor, output: str) -> list[Node] | str:
    """Return native nodes that arrange the source's elements at `where` [...] as the value `output` [N, ...].

    Returns:
        Nodes, the last of which makes `output`; the source if it is the same.

    Raises:
        NoMatchError: if this needs more than a reshape, a slice and a transpose.
    """
    shape = editor.shape(source) or ()
    total = prod(int(size or 0) for size in shape[1:])
    if (None, *where.shape) == shape and torch.equal(where.flatten(), torch.arange(total)):
        return source
    parts = _strides(where)
    order = sorted(range(len(parts)), key=lambda index: -parts[index][1])
    cuts = _cuts([parts[index] for index in order], int(where.flatten()[0]), total)
    return _build(editor, source, output, cuts, order, parts)


def _strides(where: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the axes that `where` has, as fine as it takes; `NoMatchError` if it is no sum over axes."""
    first = int(where.flatten()[0])
    parts: list[tuple[int, int]] = []
    total = torch.zeros((), dtype=torch.int64)
    for axis in range(where.dim()):
        line = where[tuple(slice(None) if other == axis else 0 for other in range(where.dim()))] - first
        total = total.unsqueeze(-1) + line
        parts += _radix(line.tolist())
    need(torch.equal(total + first, where) and all(stride > 0 for _, stride in parts))
    return parts


def _radix(line: list[int]) -> list[tuple[int, int]]:
    """A line of offsets as nested (size, stride), the outermost first."""
    if len(line) == 1:
        return []
    step, length = line[1] - line[0], 2
    while length < len(line) and line[length] - line[length - 1] == step:
        length += 1
    while len(line) % length:
        length -= 1
    need(length > 1)
    return [*_radix(line[::length]), (length, step)]


def _cuts(parts: list[tuple[int, int]], first: int, total: int) -> list[tuple[int, int | None]]:
    """The source as axes of (size, which index of it; None: all of them), the outermost first.

    Raises:
        NoMatchError: a part begins in the middle of an axis that it takes the whole of.
    """
    cuts: list[tuple[int, int | None]] = []
    reach = 1
    skipped = 0
    for size, stride in reversed(parts):
        need(stride % reach == 0)
        if stride > reach:
            cuts.append((stride // reach, first // reach % (stride // reach)))
            skipped += first // reach % (stride // reach) * reach
        cuts.append((size, None))
        reach = stride * size
    need(total % reach == 0)
    if total > reach:
        cuts.append((total // reach, first // reach))
        skipped += first // reach * reach
    need(skipped == first)
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
