"""Linear layers whose inputs are not [N, ...]: of nn.MultiheadAttention ([T, N, C]), of windows ([N * W, T, C]).

A linear layer works row by row: it may see its rows in another order, as long as what it makes is put back in the old
one. So the batch is brought to axis 0 before it and back after it; views that follow then cancel out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ticketry.engine.capture.convert import Multiple, Sizes
from ticketry.engine.capture.editor import Editor, arguments, base, rewrite, tensor_of, value_of
from ticketry.engine.capture.views import VIEWS, chain_to, example_map, is_canonical, natively
from ticketry.engine.graph import FLOATS, Graph, Node, Value

_LINEAR = ("linear", "addmm", "mm", "matmul")


def straighten(graph: Graph, sizes: Mapping[str, Sizes]) -> Graph:
    """The graph with linear layers and views on [N, ...], where they were not."""
    return rewrite(graph, _straighten, sizes)


def _straighten(editor: Editor, one: Node) -> list[Node] | str | None:
    if one.native:
        return None
    if base(one) in VIEWS and is_canonical(editor, one.output):
        return _view(editor, one)
    return _linear(editor, one) if base(one) in _LINEAR else None


def _view(editor: Editor, one: Node) -> list[Node] | str | None:
    editor.makers[one.output] = one
    chain = chain_to(editor, one.output)
    where = None if chain is None else example_map(chain, lambda made, batch: made)
    return None if chain is None or where is None else natively(editor, chain.source, where, one.output)


@dataclass(frozen=True)
class _Layout:
    """A way to see a tensor as [N, ...] and back."""

    shape: tuple[int | None, ...]
    there: Callable[[Tensor, int], Tensor]
    forth: tuple[tuple[str, list[Any]], ...]
    """Torch operations, with arguments after the tensor, that do `there`."""
    back: Callable[[int], tuple[tuple[str, list[Any]], ...]]
    """Operations that undo it, of the new last size."""


def _linear(editor: Editor, one: Node) -> list[Node] | None:
    found = arguments(one)
    x = value_of(found.get("input", found.get("mat1", found.get("self"))))
    weights = _weights(editor, one, found)
    sizes = editor.sizes.get(x or "")
    if x is None or weights is None or sizes is None or is_canonical(editor, x):
        return None
    kinds = {editor.values[x].dtype, *(str(editor.tensors[name].dtype)[6:] for name in weights.values())}
    if len(kinds) > 1 or not kinds <= FLOATS:
        return None
    layouts = _layouts(sizes)
    if not layouts:
        return None
    nodes, rows, layout = _brought(editor, x, layouts)
    layer = editor.make("linear", (rows,), one.output, weights)
    nodes.append(layer)
    current = layer.output
    steps = layout.back(editor.tensors[weights["weight"]].shape[0])
    for index, (op, args) in enumerate(steps):
        last = index == len(steps) - 1
        output = one.output if last else _free_value(editor, one.output)
        nodes.append(_torch(op, current, args, output))
        current = output
    return nodes


def _weights(editor: Editor, one: Node, found: Mapping[str, Any]) -> dict[str, str] | None:
    if base(one) == "linear":
        weight, bias, turned = tensor_of(found["weight"]), found["bias"], False
    else:
        weight = tensor_of(found.get("mat2", found.get("other")))
        bias, turned = (found["self"] if base(one) == "addmm" else None), True
        if base(one) == "addmm" and (found["beta"] != 1 or found["alpha"] != 1):
            return None
    known = None if bias is None else tensor_of(bias)
    if weight is None or editor.tensors[weight].dim() != 2 or (bias is not None and known is None):
        return None
    if known is not None and editor.tensors[known].dim() != 1:
        return None
    if turned:
        weight = editor.tensor(f"{weight}.T", editor.tensors[weight].t().contiguous())
    return {"weight": weight} | ({} if known is None else {"bias": known})


def _layouts(sizes: Sizes) -> list[_Layout]:
    """Ways to bring the batch to axis 0, the likelier first; none if it is nowhere or in two places."""
    where = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(where) != 1 or where[0] == len(sizes) - 1:
        return []
    (axis,) = where
    size = sizes[axis]
    rest = [other for other in sizes if isinstance(other, int)]
    if not isinstance(size, Multiple):
        return []
    if size.of_batch == 1:
        order = [axis, *(other for other in range(len(sizes)) if other != axis)]
        return [
            _Layout(
                (None, *rest),
                lambda made, batch: made.permute(order),
                (("aten.permute.default", [order]),),
                lambda last: (("aten.permute.default", [[order.index(other) for other in range(len(order))]]),),
            )
        ]
    if axis:
        return []
    per_example, inner = size.of_batch, rest[:-1]
    major = [-1, per_example, *rest]
    minor = [per_example, -1, *rest]
    return [
        _Layout(
            (None, per_example, *rest),
            lambda made, batch: made.reshape(batch, *major[1:]),
            (("aten.reshape.default", [major]),),
            lambda last: (("aten.reshape.default", [[-1, *inner, last]]),),
        ),
        _Layout(
            (None, per_example, *rest),
            lambda made, batch: made.reshape(per_example, batch, *rest).transpose(0, 1),
            (("aten.reshape.default", [minor]), ("aten.transpose.int", [0, 1])),
            lambda last: (("aten.transpose.int", [0, 1]), ("aten.reshape.default", [[-1, *inner, last]])),
        ),
    ]


def _brought(editor: Editor, x: str, layouts: list[_Layout]) -> tuple[list[Node], str, _Layout]:
    """Nodes that bring the batch of `x` to axis 0, the value they make, and the layout chosen."""
    chain = chain_to(editor, x)
    for layout in layouts:
        where = None if chain is None else example_map(chain, layout.there)
        if chain is None or where is None:
            continue
        rows = _free_value(editor, x, layout.shape)
        made = natively(editor, chain.source, where, rows)
        if made is not None:
            return ([], made, layout) if isinstance(made, str) else (made, rows, layout)
    nodes: list[Node] = []
    current, layout = x, layouts[0]
    for index, (op, args) in enumerate(layout.forth):
        output = _free_value(editor, x, layout.shape if index == len(layout.forth) - 1 else None)
        nodes.append(_torch(op, current, args, output))
        current = output
    return nodes, current, layout


def _free_value(editor: Editor, like: str, shape: tuple[int | None, ...] | None = None) -> str:
    name = editor.value(like, (), "rows")
    editor.values[name] = Value(name, shape, editor.values[like].dtype)
    return name


def _torch(op: str, x: str, args: list[Any], output: str) -> Node:
    return Node(op, (x,), output, {"args": [{"value": x}, *args], "kwargs": {}}, {})
