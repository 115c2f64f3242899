"""Moves the batch to axis 0 around linear layers and views of tensors that have the batch on another axis.

Examples are `nn.MultiheadAttention` with [T, N, C] and window attention with [N * W, T, C]. A linear layer treats each
row separately, so a pass may reorder the rows before the layer and restore the order after the layer. Views between
such layers then cancel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    NoMatchError,
    OpArguments,
    aten_name,
    bind_arguments,
    require_match,
    value_name,
    weight_name,
)
from ticketry_engine.capture.lower_layers import RULES, activation_of_op, linear_input, linear_weights
from ticketry_engine.capture.lower_moves import constant_argument, is_constant
from ticketry_engine.capture.patterns import attention_node
from ticketry_engine.capture.program import Multiple, Sizes
from ticketry_engine.errors import GraphError
from ticketry_engine.ir import FLOATS, Json, Node, Value, aten, native_node


def move_batch_first(editor: Editor, node: Node) -> list[Node] | str:
    """Replace `node`, a torch operation, by operations of the engine, on tensors whose batch is moved to axis 0."""
    require_match(not node.native)
    if aten_name(node) in VIEWS and has_batch_first(editor, node.output):
        editor.makers[node.output] = node
        chain = view_chain_to(editor, node.output)
        return express_as_native_views(
            editor, chain.source, source_index_of_elements(chain, lambda made, batch: made), node.output
        )
    rule = _ROW_BY_ROW.get(aten_name(node), _lower_activation_batch_first)
    return rule(editor, node, bind_arguments(node))


Step = tuple[str, list[Any]]
"""Name of a torch operation, and the arguments that follow the tensor argument."""


@dataclass(frozen=True)
class _Layout:
    """A way to view a tensor with the batch at axis 0: operations that make the view, and operations that undo it."""

    shape: tuple[int | None, ...]
    forth: tuple[Step, ...]
    back: Callable[[int], tuple[Step, ...]]
    """Function from the size of the last axis, which may have changed, to the operations that undo the view."""

    def to_batch_first(self, made: Tensor, batch: int) -> Tensor:
        """Return a view of the tensor `made` in which the batch is axis 0."""
        for op, args in self.forth:
            made = aten.find_operation(op, trusted=True)(made, *args)
        return made


Made = Callable[[list[str]], Node]
"""Function that returns the native node which computes the result from the named values; their batch is at axis 0."""


def _apply_batch_first(editor: Editor, node: Node, inputs: Sequence[str | None], make: Made) -> list[Node]:
    """Return nodes that move the batch of `inputs` to axis 0, apply an operation, and move the batch back.

    `make` is a function from the names of the moved values to the node of the operation.
    """
    sizes = [editor.sizes.get(name or "") for name in inputs]
    first = sizes[0]
    if first is None or any(other is None or other[:-1] != first[:-1] for other in sizes):
        raise NoMatchError
    names = [str(name) for name in inputs]
    require_match(not has_batch_first(editor, names[0]))
    require_match(len({editor.values[name].dtype for name in names}) == 1 and editor.values[names[0]].dtype in FLOATS)
    layouts = _possible_batch_layouts(first)
    require_match(layouts)
    nodes, rows, layout = _move_value_batch_first(editor, names[0], layouts)
    brought = [rows]
    for name in names[1:]:
        more, rows, _ = _move_value_batch_first(editor, name, [layout])
        nodes += more
        brought.append(rows)
    made = make(brought)
    nodes.append(made)
    last = (editor.shape(made.output) or (0,))[-1]
    return [*nodes, *_apply_torch_ops(editor, made.output, layout.back(int(last or 0)), node.output, node.output)]


def _lower_linear_batch_first(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    x = value_name(linear_input(args))
    weights = linear_weights(editor, node, args)
    require_match({str(editor.tensors[name].dtype)[6:] for name in weights.values()} == {editor.values[x or ""].dtype})
    return _apply_batch_first(
        editor, node, [x], lambda rows: editor.make_node("linear", (rows[0],), node.output, weights)
    )


def _lower_norm_batch_first(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    def make_norm(rows: list[str]) -> Node:
        made = RULES[aten_name(node)](editor, replace(node, output=rows[0]), {**args, "input": {"value": rows[0]}})
        if not isinstance(made, list):
            raise NoMatchError
        return editor.make_node(made[-1].op, (rows[0],), node.output, made[-1].weights, **made[-1].attrs)

    return _apply_batch_first(editor, node, [value_name(args["input"])], make_norm)


def _lower_activation_batch_first(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    act = activation_of_op(aten_name(node), args)
    require_match(act is not None)
    x = value_name(args["self"])
    return _apply_batch_first(editor, node, [x], lambda rows: editor.make_node("act", (rows[0],), node.output, act=act))


def _lower_pairwise_batch_first(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a sum or product of two values, or of a value and a constant that is the same for all examples."""
    name, pair = aten_name(node), [args["self"], args["other"]]
    require_match(args.get("alpha", 1) == 1)
    if is_constant(editor, pair[0]) and name != "div":
        pair.reverse()
    x, other = value_name(pair[0]), value_name(pair[1])
    if not is_constant(editor, pair[1]):
        require_match(name in ("add", "mul") and editor.sizes.get(x or "") == editor.sizes.get(other or ""))
        return _apply_batch_first(
            editor, node, [x, other], lambda rows: editor.make_node(name, (rows[0], rows[1]), node.output)
        )

    def make_pairwise(rows: list[str]) -> Node:
        like = len(editor.sizes[x or ""])
        constant = constant_argument(editor, pair[1], rows[0])
        require_match(constant.dim() < like or all(size == 1 for size in constant.shape[: constant.dim() - like + 1]))
        constant = constant.reciprocal() if name == "div" else constant
        op = "add_constant" if name == "add" else "mul_constant"
        weights = {"constant": editor.add_constant(f"{node.output}.constant", constant)}
        return editor.make_node(op, (rows[0],), node.output, weights)

    return _apply_batch_first(editor, node, [x], make_pairwise)


def _lower_softmax_batch_first(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a softmax over the last axis of a value whose batch is not at axis 0."""
    x = value_name(args["self"])
    last = len(editor.sizes.get(x or "", ())) - 1
    require_match(args["dim"] in (-1, last) and args.get("dtype") is None)

    def make_softmax(rows: list[str]) -> Node:
        return editor.make_node("softmax", (rows[0],), node.output, axis=len(editor.shape(rows[0]) or ()) - 1)

    return _apply_batch_first(editor, node, [x], make_softmax)


def _lower_window_matmul(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a matrix product of windows [N * W, h, T, d] with a weight, or with other windows of the same sizes."""
    names = [value_name(args[role]) for role in ("self", "other")]
    if None in names:
        return _lower_linear_batch_first(editor, node, args)
    nodes, (left, right) = _split_windows_from_batch(editor, [str(name) for name in names])
    before, last = editor.shape(left) or (), (editor.shape(right) or ())[-1]
    made = _add_temporary_value(editor, node.output, (*before[:-1], last))
    attrs = {"args": [{"value": left}, {"value": right}], "kwargs": {}}
    product = Node("aten.matmul.default", (left, right), made, attrs, {})
    return [*nodes, product, _merge_windows_into_batch(editor, made, node.output)]


def _lower_window_attention(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace attention in windows [N * W, h, T, d]; the attention bias is a weight that all windows share."""
    require_match(not args["dropout_p"] and not args["is_causal"])
    nodes, (q, k, v) = _split_windows_from_batch(
        editor, [str(value_name(args[role])) for role in ("query", "key", "value")]
    )
    mask, bias = args["attn_mask"], None
    if mask is not None:
        bias = editor.tensors.get(weight_name(mask) or "")
        if bias is None or bias.dim() > 4:
            raise NoMatchError
        bias = bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))
        require_match(bias.is_floating_point() and bias.shape[0] == 1)
    made = _add_temporary_value(editor, node.output, (*(editor.shape(q) or ())[:-1], (editor.shape(v) or ())[-1]))
    attended = attention_node(editor, (q, k, v), made, bias, args["scale"])
    return [*nodes, attended, _merge_windows_into_batch(editor, made, node.output)]


def _split_windows_from_batch(editor: Editor, names: list[str]) -> tuple[list[Node], list[str]]:
    """Return nodes that view the values `names` [N * W, h, ...] as [N, W, h, ...], and the names of the views."""
    sizes = [editor.sizes.get(name, ()) for name in names]
    several = sizes[0][0] if sizes[0] else None
    require_match(all(len(size) == 4 and size[:2] == sizes[0][:2] for size in sizes))
    require_match(isinstance(several, Multiple) and several.of_batch > 1)
    nodes, found = [], []
    for name, size in zip(names, sizes, strict=True):
        require_match(editor.values[name].dtype in FLOATS)
        more, rows, _ = _move_value_batch_first(editor, name, _possible_batch_layouts(size)[:1])
        nodes += more
        found.append(rows)
    return nodes, found


def _merge_windows_into_batch(editor: Editor, made: str, output: str) -> Node:
    """Return the node that views the value `made` [N, W, ...] as `output` [N * W, ...]."""
    sizes = [-1, *(int(size or 0) for size in (editor.shape(made) or ())[2:])]
    return Node("aten.reshape.default", (made,), output, {"args": [{"value": made}, sizes], "kwargs": {}}, {})


_ROW_BY_ROW: Mapping[str, Callable[[Editor, Node, OpArguments], list[Node]]] = {
    **dict.fromkeys(("linear", "addmm", "mm"), _lower_linear_batch_first),
    "matmul": _lower_window_matmul,
    "scaled_dot_product_attention": _lower_window_attention,
    **dict.fromkeys(("softmax", "_softmax"), _lower_softmax_batch_first),
    **dict.fromkeys(("layer_norm", "rms_norm"), _lower_norm_batch_first),
    **dict.fromkeys(("add", "mul", "div"), _lower_pairwise_batch_first),
}
"""Name of a row-wise operation (other than an activation) -> the rule that lowers the operation."""


def _possible_batch_layouts(sizes: Sizes) -> list[_Layout]:
    """Return ways to move the batch to axis 0, the most likely way first.

    Return [] if the batch is part of no axis, or of several axes.
    """
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


def _move_value_batch_first(editor: Editor, x: str, layouts: list[_Layout]) -> tuple[list[Node], str, _Layout]:
    """Return nodes that move the batch of `x` to axis 0, the name of the moved value, and the way that was used.

    `layouts` are the ways to try.
    """
    for layout in layouts:
        with contextlib.suppress(NoMatchError):
            chain = view_chain_to(editor, x)
            where = source_index_of_elements(chain, layout.to_batch_first)
            rows = _add_temporary_value(editor, x, layout.shape)
            made = express_as_native_views(editor, chain.source, where, rows)
            return ([], made, layout) if isinstance(made, str) else (made, rows, layout)
    rows = _add_temporary_value(editor, x, layouts[0].shape)
    return _apply_torch_ops(editor, x, layouts[0].forth, x, rows), rows, layouts[0]


def _add_temporary_value(editor: Editor, like: str, shape: tuple[int | None, ...] | None = None) -> str:
    name = editor.add_value(like, (), "rows")
    editor.values[name] = Value(name, shape, editor.values[like].dtype)
    return name


def _apply_torch_ops(editor: Editor, x: str, steps: Sequence[Step], like: str, output: str) -> list[Node]:
    """Return nodes that apply the torch operations `steps` in sequence to `x`; the last node computes `output`.

    New values have the dtype of `like`.
    """
    nodes = []
    for number, (op, args) in enumerate(steps, start=1):
        made = output if number == len(steps) else _add_temporary_value(editor, like)
        nodes.append(Node(op, (x,), made, {"args": [{"value": x}, *args], "kwargs": {}}, {}))
        x = made
    return nodes


# -- chains of views, followed element by element and replaced by native nodes -----------------------------------------


_VIEWS = """
view reshape _unsafe_view view_copy permute transpose swapaxes swapdims movedim moveaxis mT t squeeze unsqueeze select
slice narrow flatten unflatten contiguous clone split split_with_sizes chunk unbind getitem
"""
VIEWS = frozenset(_VIEWS.split())
_BATCHES = (2, 3)
_LARGEST = 1 << 22
"""Maximum number of elements of one example; torch computes the views of larger examples."""


@dataclass(frozen=True)
class ViewChain:
    """Consecutive views of a tensor, as a function that returns the index of each viewed element in the tensor."""

    source: str
    """Name of the value at which the chain starts; its batch is at axis 0."""
    size: int
    """Number of elements of one example of the source."""
    run: Callable[[int], Tensor]
    """Function from a number of examples to a tensor with the source index of each viewed element."""


def view_chain_to(editor: Editor, name: str) -> ViewChain:
    """Return the views that make `name` from the nearest earlier value with the batch at axis 0."""
    steps: list[Node] = []
    while not has_batch_first(editor, name) or not steps:
        maker = editor.match_maker(name, *VIEWS)
        found = value_name(maker.attrs["args"][0]) if not maker.native else None
        if found is None:
            raise NoMatchError
        steps.append(maker)
        name = found
    shape = editor.shape(name) or ()
    require_match(prod(size or 1 for size in shape) <= _LARGEST)

    def apply_views(batch: int) -> Tensor:
        sizes = [batch, *(int(size or 0) for size in shape[1:])]
        made = torch.arange(prod(sizes)).view(sizes)
        for one in reversed(steps):
            viewed = value_name(one.attrs["args"][0])
            inputs = [made if value == viewed else evaluate_size(editor, value, batch) for value in one.inputs]
            made = aten.bind_torch_node(one, editor.tensors, "cpu")(*inputs)
        return made

    return ViewChain(name, prod(int(size or 0) for size in shape[1:]), apply_views)


def has_batch_first(editor: Editor, name: str) -> bool:
    """Return whether a value is a floating-point tensor with the batch at axis 0."""
    return editor.share_float_dtype(name) and (editor.shape(name) or (0,))[0] is None


def evaluate_size(editor: Editor, name: str, batch: int) -> int:
    """Return the size that the value `name` has for `batch` examples; raise `GraphError` if the value is no size."""
    one = editor.makers.get(name)
    if one is not None and one.op == "aten.sym_size.int":
        sizes = editor.value_sizes(value_name(one.attrs["args"][0]) or "")
        if sizes is not None:
            size = sizes[one.attrs["args"][1]]
            return size.of_batch * batch if isinstance(size, Multiple) else int(size or 0)
    if one is None or not one.op.startswith("operator.") or aten_name(one) == "getitem":
        raise GraphError(f"{name} is no size")
    made = aten.bind_torch_node(one, {}, "cpu")(*(evaluate_size(editor, part, batch) for part in one.inputs))
    return int(made)


def source_index_of_elements(chain: ViewChain, layout: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return, for each element of one example, its index in the tensor at which the views start.

    `layout` takes the viewed value and the number of examples, and returns the value with the batch at axis 0. Raise
    `NoMatchError` if an element of an example comes from another example.
    """
    found: Tensor | None = None
    for batch in _BATCHES:
        try:
            made = layout(chain.run(batch), batch)
        except (GraphError, RuntimeError, IndexError, TypeError):
            raise NoMatchError from None
        require_match(made.numel() and made.shape[0] == batch)
        for index in range(batch):
            local = made[index] - index * chain.size
            found = local if found is None else found
            require_match(found.shape == local.shape and torch.equal(found, local))
    assert found is not None
    require_match(int(found.min()) >= 0 and int(found.max()) < chain.size)
    return found


def express_as_native_views(editor: Editor, source: str, where: Tensor, output: str) -> list[Node] | str:
    """Return nodes that compute `output` [N, ...] by picking, for each element, the element of `source` in `where`.

    If nothing moves, return the name `source`. Raise `NoMatchError` if reshapes, slices and a transpose of the engine
    cannot express the arrangement.
    """
    shape = editor.shape(source) or ()
    total = prod(int(size or 0) for size in shape[1:])
    if (None, *where.shape) == shape and torch.equal(where.flatten(), torch.arange(total)):
        return source
    parts = _sizes_and_strides(where)
    order = sorted(range(len(parts)), key=lambda index: -parts[index][1])
    cuts = _source_axis_indices([parts[index] for index in order], int(where.flatten()[0]), total)
    return _build_views(editor, source, output, cuts, order, parts)


def _sizes_and_strides(where: Tensor) -> list[tuple[int, int]]:
    """Return (size, stride) per axis of the index table `where`; raise `NoMatchError` if no strides give the table."""
    first = int(where.flatten()[0])
    parts: list[tuple[int, int]] = []
    total = torch.zeros((), dtype=torch.int64)
    for axis in range(where.dim()):
        line = where[tuple(slice(None) if other == axis else 0 for other in range(where.dim()))] - first
        total = total.unsqueeze(-1) + line
        parts += _loops_over_offsets(line.tolist())
    require_match(torch.equal(total + first, where) and all(stride > 0 for _, stride in parts))
    return parts


def _loops_over_offsets(line: list[int]) -> list[tuple[int, int]]:
    """Return pairs (size, stride) of nested loops that visit the numbers in `line`, the outermost loop first."""
    if len(line) == 1:
        return []
    step, length = line[1] - line[0], 2
    while length < len(line) and line[length] - line[length - 1] == step:
        length += 1
    while len(line) % length:
        length -= 1
    require_match(length > 1)
    return [*_loops_over_offsets(line[::length]), (length, step)]


def _source_axis_indices(parts: list[tuple[int, int]], first: int, total: int) -> list[tuple[int, int | None]]:
    """Return (size, index) per axis of the source value, outermost first; `index` is None if all entries are read.

    `parts` are (size, stride) of the axes that are read, `first` is the index of the first element, and `total` the
    number of elements.
    """
    cuts: list[tuple[int, int | None]] = []
    reach = 1
    skipped = 0
    for size, stride in reversed(parts):
        require_match(stride % reach == 0)
        if stride > reach:
            cuts.append((stride // reach, first // reach % (stride // reach)))
            skipped += first // reach % (stride // reach) * reach
        cuts.append((size, None))
        reach = stride * size
    require_match(total % reach == 0)
    if total > reach:
        cuts.append((total // reach, first // reach))
        skipped += first // reach * reach
    require_match(skipped == first)
    return cuts[::-1]


def _build_views(
    editor: Editor,
    source: str,
    output: str,
    cuts: list[tuple[int, int | None]],
    order: list[int],
    parts: list[tuple[int, int]],
) -> list[Node]:
    nodes: list[Node] = []
    current = source

    def append_view(op: str, **attrs: Json) -> None:
        nonlocal current
        nodes.append(editor.make_node(op, (current,), output, **attrs))
        current = nodes[-1].output

    append_view("reshape", shape=[None, *(size for size, _ in cuts)])
    for axis, (_, chosen) in enumerate(cuts, start=1):
        if chosen is not None:
            append_view("slice", axis=axis, start=chosen, stop=chosen + 1)
    if any(chosen is not None for _, chosen in cuts):
        append_view("reshape", shape=[None, *(parts[index][0] for index in order)])
    if order != sorted(order):
        append_view("transpose", axes=[0, *(1 + order.index(index) for index in range(len(order)))])
    made = editor.shape(output) or ()
    nodes.append(native_node("reshape", (current,), output, shape=list(made)))
    return nodes
