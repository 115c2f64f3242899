"""Linear layers whose inputs are not [N, ...]: of nn.MultiheadAttention ([T, N, C]), of windows ([N * W, T, C]).

A linear layer works row by row: it may see its rows in another order, as long as what it makes is put back in the old
one. So the batch is brought to axis 0 before it and back after it; views that follow then cancel out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    Found,
    NoMatchError,
    arguments,
    base,
    need,
    rewrite,
    tensor_of,
    value_of,
)
from ticketry_engine.capture.lower_layers import RULES, act_of, linear_input, linear_weights
from ticketry_engine.capture.lower_moves import constant_of, is_constant
from ticketry_engine.capture.patterns import attention
from ticketry_engine.capture.tracing.program import Multiple, Sizes
from ticketry_engine.capture.view_chains import VIEWS, chain_to, example_map, is_canonical, natively
from ticketry_engine.ir import FLOATS, Graph, Node, Value, aten


def straighten(graph: Graph, sizes: Mapping[str, Sizes]) -> Graph:
    """The graph with linear layers and views on [N, ...], where they were not."""
    return rewrite(graph, _straighten, sizes)


def _straighten(editor: Editor, one: Node) -> list[Node] | str:
    need(not one.native)
    if base(one) in VIEWS and is_canonical(editor, one.output):
        return _view(editor, one)
    rule = _ROW_BY_ROW.get(base(one), _act)
    return rule(editor, one, arguments(one))


def _view(editor: Editor, one: Node) -> list[Node] | str:
    editor.makers[one.output] = one
    chain = chain_to(editor, one.output)
    return natively(editor, chain.source, example_map(chain, lambda made, batch: made), one.output)


Step = tuple[str, list[Any]]
"""A torch operation, and its arguments after the tensor."""


@dataclass(frozen=True)
class _Layout:
    """A way to see a tensor as [N, ...] and back."""

    shape: tuple[int | None, ...]
    forth: tuple[Step, ...]
    back: Callable[[int], tuple[Step, ...]]
    """Operations that undo it, of the new last size."""

    def there(self, made: Tensor, batch: int) -> Tensor:
        """The tensor seen so."""
        for op, args in self.forth:
            made = aten.find(op, trusted=True)(made, *args)
        return made


Made = Callable[[list[str]], Node]
"""Values on [N, ...] -> the native node that makes the result there."""


def _on_rows(editor: Editor, one: Node, inputs: Sequence[str | None], make: Made) -> list[Node]:
    """An operation that works row by row, done where the batch of its inputs, of one shape but for the last axis, is
    at axis 0."""
    sizes = [editor.sizes.get(name or "") for name in inputs]
    first = sizes[0]
    if first is None or any(other is None or other[:-1] != first[:-1] for other in sizes):
        raise NoMatchError
    names = [str(name) for name in inputs]
    need(not is_canonical(editor, names[0]))
    need(len({editor.values[name].dtype for name in names}) == 1 and editor.values[names[0]].dtype in FLOATS)
    layouts = _layouts(first)
    need(layouts)
    nodes, rows, layout = _brought(editor, names[0], layouts)
    brought = [rows]
    for name in names[1:]:
        more, rows, _ = _brought(editor, name, [layout])
        nodes += more
        brought.append(rows)
    made = make(brought)
    nodes.append(made)
    last = (editor.shape(made.output) or (0,))[-1]
    return [*nodes, *_torch(editor, made.output, layout.back(int(last or 0)), one.output, one.output)]


def _linear(editor: Editor, one: Node, found: Found) -> list[Node]:
    x = value_of(linear_input(found))
    weights = linear_weights(editor, one, found)
    need({str(editor.tensors[name].dtype)[6:] for name in weights.values()} == {editor.values[x or ""].dtype})
    return _on_rows(editor, one, [x], lambda rows: editor.make("linear", (rows[0],), one.output, weights))


def _norm(editor: Editor, one: Node, found: Found) -> list[Node]:
    def make(rows: list[str]) -> Node:
        made = RULES[base(one)](editor, replace(one, output=rows[0]), {**found, "input": {"value": rows[0]}})
        if not isinstance(made, list):
            raise NoMatchError
        return editor.make(made[-1].op, (rows[0],), one.output, made[-1].weights, **made[-1].attrs)

    return _on_rows(editor, one, [value_of(found["input"])], make)


def _act(editor: Editor, one: Node, found: Found) -> list[Node]:
    act = act_of(base(one), found)
    need(act is not None)
    x = value_of(found["self"])
    return _on_rows(editor, one, [x], lambda rows: editor.make("act", (rows[0],), one.output, act=act))


def _pair(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A sum or product of two values, or with a constant of the axes that all rows have."""
    name, pair = base(one), [found["self"], found["other"]]
    need(found.get("alpha", 1) == 1)
    if is_constant(editor, pair[0]) and name != "div":
        pair.reverse()
    x, other = value_of(pair[0]), value_of(pair[1])
    if not is_constant(editor, pair[1]):
        need(name in ("add", "mul") and editor.sizes.get(x or "") == editor.sizes.get(other or ""))
        return _on_rows(editor, one, [x, other], lambda rows: editor.make(name, (rows[0], rows[1]), one.output))

    def make(rows: list[str]) -> Node:
        like = len(editor.sizes[x or ""])
        constant = constant_of(editor, pair[1], rows[0])
        need(constant.dim() < like or all(size == 1 for size in constant.shape[: constant.dim() - like + 1]))
        constant = constant.reciprocal() if name == "div" else constant
        op = "add_constant" if name == "add" else "mul_constant"
        weights = {"constant": editor.constant(f"{one.output}.constant", constant)}
        return editor.make(op, (rows[0],), one.output, weights)

    return _on_rows(editor, one, [x], make)


def _softmax(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Over the last axis."""
    x = value_of(found["self"])
    last = len(editor.sizes.get(x or "", ())) - 1
    need(found["dim"] in (-1, last) and found.get("dtype") is None)

    def make(rows: list[str]) -> Node:
        return editor.make("softmax", (rows[0],), one.output, axis=len(editor.shape(rows[0]) or ()) - 1)

    return _on_rows(editor, one, [x], make)


def _matmul(editor: Editor, one: Node, found: Found) -> list[Node]:
    """A product of a weight, or of two values of windows [N * W, h, T, d], window by window."""
    names = [value_of(found[role]) for role in ("self", "other")]
    if None in names:
        return _linear(editor, one, found)
    nodes, (left, right) = _windows(editor, [str(name) for name in names])
    before, last = editor.shape(left) or (), (editor.shape(right) or ())[-1]
    made = _free_value(editor, one.output, (*before[:-1], last))
    attrs = {"args": [{"value": left}, {"value": right}], "kwargs": {}}
    product = Node("aten.matmul.default", (left, right), made, attrs, {})
    return [*nodes, product, _flatten_windows(editor, made, one.output)]


def _attention(editor: Editor, one: Node, found: Found) -> list[Node]:
    """Attention in windows [N * W, h, T, d], with a bias that is a weight, the same for all windows."""
    need(not found["dropout_p"] and not found["is_causal"])
    nodes, (q, k, v) = _windows(editor, [str(value_of(found[role])) for role in ("query", "key", "value")])
    mask, bias = found["attn_mask"], None
    if mask is not None:
        bias = editor.tensors.get(tensor_of(mask) or "")
        if bias is None or bias.dim() > 4:
            raise NoMatchError
        bias = bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))
        need(bias.is_floating_point() and bias.shape[0] == 1)
    made = _free_value(editor, one.output, (*(editor.shape(q) or ())[:-1], (editor.shape(v) or ())[-1]))
    attended = attention(editor, (q, k, v), made, bias, found["scale"])
    return [*nodes, attended, _flatten_windows(editor, made, one.output)]


def _windows(editor: Editor, names: list[str]) -> tuple[list[Node], list[str]]:
    """Values [N * W, h, ...] as [N, W, h, ...], where windows of an example are neighbours."""
    sizes = [editor.sizes.get(name, ()) for name in names]
    several = sizes[0][0] if sizes[0] else None
    need(all(len(size) == 4 and size[:2] == sizes[0][:2] for size in sizes))
    need(isinstance(several, Multiple) and several.of_batch > 1)
    nodes, found = [], []
    for name, size in zip(names, sizes, strict=True):
        need(editor.values[name].dtype in FLOATS)
        more, rows, _ = _brought(editor, name, _layouts(size)[:1])
        nodes += more
        found.append(rows)
    return nodes, found


def _flatten_windows(editor: Editor, made: str, output: str) -> Node:
    """[N, W, ...] as [N * W, ...]"""
    sizes = [-1, *(int(size or 0) for size in (editor.shape(made) or ())[2:])]
    return Node("aten.reshape.default", (made,), output, {"args": [{"value": made}, sizes], "kwargs": {}}, {})


_ROW_BY_ROW: Mapping[str, Callable[[Editor, Node, Found], list[Node]]] = {
    **dict.fromkeys(("linear", "addmm", "mm"), _linear),
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("add", "mul", "div"), _pair),
}
"""Beside activations."""


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
            (("aten.reshape.default", [major]),),
            lambda last: (("aten.reshape.default", [[-1, *inner, last]]),),
        ),
        _Layout(
            (None, per_example, *rest),
            (("aten.reshape.default", [minor]), ("aten.transpose.int", [0, 1])),
            lambda last: (("aten.transpose.int", [0, 1]), ("aten.reshape.default", [[-1, *inner, last]])),
        ),
    ]


def _brought(editor: Editor, x: str, layouts: list[_Layout]) -> tuple[list[Node], str, _Layout]:
    """Nodes that bring the batch of `x` to axis 0, the value they make, and the layout chosen."""
    for layout in layouts:
        with contextlib.suppress(NoMatchError):
            chain = chain_to(editor, x)
            where = example_map(chain, layout.there)
            rows = _free_value(editor, x, layout.shape)
            made = natively(editor, chain.source, where, rows)
            return ([], made, layout) if isinstance(made, str) else (made, rows, layout)
    rows = _free_value(editor, x, layouts[0].shape)
    return _torch(editor, x, layouts[0].forth, x, rows), rows, layouts[0]


def _free_value(editor: Editor, like: str, shape: tuple[int | None, ...] | None = None) -> str:
    name = editor.value(like, (), "rows")
    editor.values[name] = Value(name, shape, editor.values[like].dtype)
    return name


def _torch(editor: Editor, x: str, steps: Sequence[Step], like: str, output: str) -> list[Node]:
    """Torch operations one after the other, from a value to `output`, by way of values called like another."""
    nodes = []
    for number, (op, args) in enumerate(steps, start=1):
        made = output if number == len(steps) else _free_value(editor, like)
        nodes.append(Node(op, (x,), made, {"args": [{"value": x}, *args], "kwargs": {}}, {}))
        x = made
    return nodes
