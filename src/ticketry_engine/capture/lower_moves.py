"""Lowers operations that move elements, and sums and products with constants, to native nodes.

Rolls, pads, repetitions and strided slices become slices, concatenations, reshapes and pads. `lower_move` runs after
the passes that fold pads into convolutions and remove repeated attention heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    Lowering,
    NoMatchError,
    OpArguments,
    Rule,
    aten_name,
    bind_arguments,
    constant_number,
    finite_number,
    require_match,
    value_name,
    weight_name,
    with_last_output,
)
from ticketry_engine.capture.lower_layers import lower_first_result
from ticketry_engine.capture.same_rows import expanded_row
from ticketry_engine.ir import Graph, Json, Node, aten, native_node

_MOST_COPIES = 256
"""Maximum number of copies of a value that a lowered expand or resize may make."""


def lower_move(editor: Editor, node: Node) -> list[Node] | str:
    """Replace a torch operation that only moves elements and keeps the batch at axis 0 by the engine's operations."""
    if node.op == "softmax":
        return _lower_softmax_over_axis(editor, node)
    require_match(not node.native)
    rule = _RULES.get(aten_name(node))
    if rule is None:
        raise NoMatchError
    return rule(editor, node, bind_arguments(node))


def _moved_value_and_sizes(editor: Editor, node: Node, args: OpArguments) -> tuple[str, tuple[int, ...]]:
    """Return the value that `node` moves, and its sizes without the batch; raise `NoMatchError` if the batch moves."""
    (x,) = editor.float_inputs(node, args.get("self", args.get("input")))
    shape, made = editor.shape(x) or (), editor.shape(node.output) or ()
    require_match(len(shape) >= 2 and made and shape[0] == made[0])
    return x, tuple(int(size or 0) for size in shape[1:])


def _lower_roll(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    x, sizes = _moved_value_and_sizes(editor, node, args)
    shifts, axes = args["shifts"], args["dims"]
    require_match(axes and len(shifts) == len(axes) and all(type(shift) is int for shift in shifts))
    nodes: list[Node] = []
    current = x
    for shift, given in zip(shifts, axes, strict=True):
        axis = int(given) % (len(sizes) + 1)
        require_match(axis)
        size = sizes[axis - 1]
        if not size or not shift % size:
            continue
        at = size - shift % size
        parts = [
            editor.make_node("slice", (current,), node.output, axis=axis, start=low, stop=high)
            for low, high in ((at, size), (0, at))
        ]
        joined = editor.make_node("concat", tuple(part.output for part in parts), node.output, axis=axis)
        nodes += [*parts, joined]
        current = joined.output
    return with_last_output(nodes, x, node.output)


def _lower_pad(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    x, sizes = _moved_value_and_sizes(editor, node, args)
    sides = args["pad"]
    require_match(args.get("mode", "constant") == "constant" and not args["value"])
    require_match(len(sides) <= 2 * len(sizes) and all(type(side) is int for side in sides))
    pairs = [(0, 0)] * (len(sizes) - len(sides) // 2) + list(zip(sides[::2], sides[1::2], strict=True))[::-1]
    nodes: list[Node] = []
    current = x
    for axis, ((low, high), size) in enumerate(zip(pairs, sizes, strict=True), start=1):
        if low < 0 or high < 0:  # a pad of less than nothing cuts
            start, stop = max(0, -low), size - max(0, -high)
            nodes.append(editor.make_node("slice", (current,), node.output, axis=axis, start=start, stop=stop))
            current = nodes[-1].output
    before, after = ([max(0, pair[side]) for pair in pairs] for side in (0, 1))
    if any((*before, *after)):
        nodes.append(editor.make_node("pad", (current,), node.output, before=before, after=after))
    return with_last_output(nodes, x, node.output)


def _lower_strided_slice(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    """Replace a slice with a step, such as x[:, start:stop:step]."""
    x, sizes = _moved_value_and_sizes(editor, node, args)
    axis, start, step = int(args["dim"]) % (len(sizes) + 1), args["start"] or 0, args["step"]
    require_match(axis and type(start) is int and type(step) is int and step > 1)
    size, places = sizes[axis - 1], int((editor.shape(node.output) or ())[axis] or 0)
    start = min(start, size) if start >= 0 else max(start + size, 0)
    nodes: list[Node] = []
    stop = start + places * step
    if stop > size:
        room = [0] * len(sizes)
        after = [stop - size if other == axis - 1 else 0 for other in range(len(sizes))]
        nodes.append(editor.make_node("pad", (x,), node.output, before=room, after=after))
    if start or stop < size:
        current = nodes[-1].output if nodes else x
        nodes.append(editor.make_node("slice", (current,), node.output, axis=axis, start=start, stop=stop))
    cut = [*(editor.shape(x) or ())[:axis], places, step, *sizes[axis:]]
    nodes.append(editor.make_node("reshape", (nodes[-1].output if nodes else x,), node.output, shape=cut))
    nodes.append(editor.make_node("slice", (nodes[-1].output,), node.output, axis=axis + 1, start=0, stop=1))
    return [*nodes, reshape_node(editor, nodes[-1].output, node.output)]


def _lower_expand(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    """Replace an expand of axes of size 1 by concatenations of copies."""
    x, sizes = _moved_value_and_sizes(editor, node, args)
    made = tuple(int(size or 0) for size in (editor.shape(node.output) or ())[1:])
    require_match(len(made) == len(sizes))
    copies = 1
    nodes: list[Node] = []
    for axis, (size, wanted) in enumerate(zip(sizes, made, strict=True), start=1):
        if size != wanted:
            require_match(size == 1)
            copies *= wanted
            current = nodes[-1].output if nodes else x
            nodes.append(editor.make_node("concat", (current,) * wanted, node.output, axis=axis))
    require_match(copies <= _MOST_COPIES)
    return with_last_output(nodes, x, node.output)


def _lower_nearest_resize(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    """Replace nearest-neighbour upsampling by integer factors by concatenations that repeat pixels."""
    x, sizes = _moved_value_and_sizes(editor, node, args)
    made = tuple(int(size or 0) for size in (editor.shape(node.output) or ())[1:])
    require_match(len(sizes) == 3 and all(size and not wanted % size for size, wanted in zip(sizes, made, strict=True)))
    require_match(len(node.inputs) == 1 and _repeats_pixels(editor, node, sizes[1:], made[1:]))
    nodes: list[Node] = []
    current, shape, batch = x, list(sizes), (editor.shape(x) or ())[0]
    for axis in (1, 2):
        times = made[axis] // sizes[axis]
        require_match(times <= _MOST_COPIES)
        if times == 1:
            continue
        cut = editor.make_node(
            "reshape", (current,), node.output, shape=[batch, *shape[: axis + 1], 1, *shape[axis + 1 :]]
        )
        several = editor.make_node("concat", (cut.output,) * times, node.output, axis=axis + 2)
        shape[axis] *= times
        joined = editor.make_node("reshape", (several.output,), node.output, shape=[batch, *shape])
        nodes += [cut, several, joined]
        current = joined.output
    return with_last_output(nodes, x, node.output)


def _repeats_pixels(editor: Editor, node: Node, sizes: tuple[int, ...], made: tuple[int, ...]) -> bool:
    """Return whether upsampling repeats every pixel equally often, tested on images of row and column numbers."""
    interpolate = aten.bind_torch_node(node, editor.tensors, "cpu")
    for axis, (size, wanted) in enumerate(zip(sizes, made, strict=True)):
        numbers = torch.arange(size, dtype=getattr(torch, editor.values[node.output].dtype))
        pixels = numbers.view(1, 1, *((-1, 1) if axis == 0 else (1, -1))).expand(1, 1, *sizes)
        found = interpolate(pixels.contiguous()).select(3 - axis, 0).flatten()
        if not bool(numbers.diff().all()) or not torch.equal(found, numbers.repeat_interleave(wanted // size)):
            return False
    return True


# -- branches on a separate axis, [N, K, C, H, W] (SKNet) --------------------------------------------------------------

_MOST_BRANCHES = 8


def _select_entry(editor: Editor, x: str, axis: int, number: int) -> tuple[list[Node], str]:
    """Return nodes that select entry `number` along `axis` and drop the axis, and the name of the selected value."""
    shape = editor.shape(x) or ()
    part = editor.make_node("slice", (x,), x, axis=axis, start=number, stop=number + 1)
    whole = editor.make_node("reshape", (part.output,), x, shape=[*shape[:axis], *shape[axis + 1 :]])
    return [part, whole], whole.output


def _lower_stack(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    names, shape = editor.float_inputs(node, *args["tensors"]), editor.shape(node.output) or ()
    axis = int(args["dim"]) % len(shape)
    require_match(axis and all(editor.shape(name) == (*shape[:axis], *shape[axis + 1 :]) for name in names))
    wide = [*shape[:axis], 1, *shape[axis + 1 :]]
    parts = [editor.make_node("reshape", (name,), node.output, shape=wide) for name in names]
    return [*parts, native_node("concat", tuple(part.output for part in parts), node.output, axis=axis)]


def _lower_branch_sum(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a sum over an axis with at most 8 entries by additions of the entries."""
    x, sizes = _moved_value_and_sizes(editor, node, args)
    require_match(len(args["dim"] or ()) == 1 and args.get("dtype") is None and len(sizes) == 4)
    axis = int(args["dim"][0]) % (len(sizes) + 1)
    require_match(axis and 1 < sizes[axis - 1] <= _MOST_BRANCHES)
    nodes, total = _select_entry(editor, x, axis, 0)
    for number in range(1, sizes[axis - 1]):
        more, part = _select_entry(editor, x, axis, number)
        nodes += [*more, editor.make_node("add", (total, part), node.output)]
        total = nodes[-1].output
    return [*nodes, reshape_node(editor, total, node.output)]


def _lower_branch_gate(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a product of [N, K, C, H, W] and [N, K, C, 1, 1] by one product for each of the K branches."""
    x, other = editor.float_inputs(node, args["self"], args["other"], axes=5)
    if editor.shape(x) != editor.shape(node.output):
        x, other = other, x
    shape = editor.shape(x) or ()
    require_match(shape == editor.shape(node.output) and editor.shape(other) == (*shape[:3], 1, 1))
    require_match(1 < int(shape[1] or 0) <= _MOST_BRANCHES)
    nodes: list[Node] = []
    made = []
    for number in range(int(shape[1] or 0)):
        (left, value), (right, factor) = (_select_entry(editor, name, 1, number) for name in (x, other))
        product = editor.make_node("mul", (value, factor), node.output)
        wide = editor.make_node("reshape", (product.output,), node.output, shape=[shape[0], 1, *shape[2:]])
        nodes += [*left, *right, product, wide]
        made.append(wide.output)
    return [*nodes, native_node("concat", tuple(made), node.output, axis=1)]


def _lower_softmax_over_axis(editor: Editor, node: Node) -> list[Node]:
    """Replace a softmax over an axis other than the last by a softmax over the last axis between two transposes."""
    x, axis = node.inputs[0], int(node.attrs["axis"])
    shape = editor.shape(x) or ()
    require_match(len(shape) >= 5 and axis < len(shape) - 1)
    transpose_order = [*(other for other in range(len(shape)) if other != axis), axis]
    turned = editor.make_node("transpose", (x,), node.output, axes=transpose_order)
    soft = editor.make_node("softmax", (turned.output,), node.output, axis=len(shape) - 1)
    back = [transpose_order.index(other) for other in range(len(shape))]
    return [turned, soft, native_node("transpose", (soft.output,), node.output, axes=back)]


_RULES: Mapping[str, Callable[[Editor, Node, OpArguments], list[Node] | str]] = {
    "roll": _lower_roll,
    "pad": _lower_pad,
    "constant_pad_nd": _lower_pad,
    "slice": _lower_strided_slice,
    **dict.fromkeys(("expand", "expand_as"), _lower_expand),
    "upsample_nearest2d": _lower_nearest_resize,
    "stack": _lower_stack,
    "sum": _lower_branch_sum,
    "mul": _lower_branch_gate,
}


# -- Reshapes, transposes, slices and concatenations that leave the batch where it is ----------------------------------


def _input_with_same_batch(editor: Editor, node: Node, args: OpArguments) -> str:
    """Return the name of the first argument; raise `NoMatchError` unless its size 0 equals that of the output."""
    (x,) = editor.float_inputs(node, args.get("self"))
    before, after = editor.shape(x), editor.shape(node.output)
    require_match(before and after and before[0] == after[0])
    return x


def _input_of_same_size(editor: Editor, node: Node, args: OpArguments) -> str | None:
    """Return the name of the first argument if the output is known to have the same sizes, else None."""
    x = value_name(args.get("self"))
    return x if x is not None and editor.have_same_sizes(x, node.output) else None


def reshape_node(editor: Editor, x: str, output: str) -> Node:
    """Return the node that reshapes `x` to the shape of `output`, and computes `output`."""
    before, after = editor.shape(x) or (), editor.shape(output) or ()
    if len(after) == 2 and len(before) > 2:
        return native_node("flatten", (x,), output)
    return native_node("reshape", (x,), output, shape=list(after))


def _lower_reshape(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    if (raw := _input_of_same_size(editor, node, args)) is not None:
        return raw
    x = _input_with_same_batch(editor, node, args)
    before, after = editor.shape(x) or (), editor.shape(node.output) or ()
    if before == after:
        return x
    require_match(prod(map(_size_or_one, before)) == prod(map(_size_or_one, after)))
    return [reshape_node(editor, x, node.output)]


def _size_or_one(size: int | None) -> int:
    return 1 if size is None else size


def _lower_permute(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    x = _input_with_same_batch(editor, node, args)
    axes = transpose_order(aten_name(node), args, len(editor.shape(x) or ()))
    require_match(axes[0] == 0)
    return x if axes == sorted(axes) else [native_node("transpose", (x,), node.output, axes=axes)]


_TWO_AXES = ("dim0", "dim1", "axis0", "axis1")


def transpose_order(name: str, args: OpArguments, rank: int) -> list[int]:
    """Return, for each output axis of the transposing operation `name`, the index of the input axis."""
    axes = list(range(rank))
    if name == "permute":
        return [int(axis) % rank for axis in args["dims"]]
    if name in ("transpose", "swapaxes", "swapdims", "mT", "t"):
        pair: list[int] = [-2, -1]  # mT
        if name != "mT":
            pair = [0, 1] if name == "t" else [int(args[role]) for role in args if role in _TWO_AXES]
        a, b = (axis % rank for axis in pair)
        axes[a], axes[b] = axes[b], axes[a]
        return axes
    require_match(name in ("movedim", "moveaxis"))
    source, target = (
        [args[role]] if isinstance(args[role], int) else list(args[role]) for role in ("source", "destination")
    )
    moved = {int(to) % rank: int(axis) % rank for axis, to in zip(source, target, strict=True)}
    rest = iter(axis for axis in axes if axis not in moved.values())
    return [moved[place] if place in moved else next(rest) for place in axes]


def _lower_range_of_axis(editor: Editor, x: str, output: str, axis: int, start: int, stop: int) -> list[Node] | str:
    if (start, stop) == (0, (editor.shape(x) or ())[axis]):
        return x
    return [native_node("slice", (x,), output, axis=axis, start=start, stop=stop)]


def _lower_slice(editor: Editor, node: Node, args: OpArguments) -> list[Node] | str:
    require_match(args.get("step", 1) == 1)
    if (raw := _input_of_same_size(editor, node, args)) is not None:
        return raw
    x = _input_with_same_batch(editor, node, args)
    shape, made = editor.shape(x) or (), editor.shape(node.output) or ()
    axis, start = int(args["dim"]) % len(shape), args["start"] or 0
    require_match(axis and isinstance(start, int))
    size = _size_or_one(shape[axis])
    start = min(start, size) if start >= 0 else max(start + size, 0)
    return _lower_range_of_axis(editor, x, node.output, axis, start, start + _size_or_one(made[axis]))


def _lower_select(editor: Editor, x: str, output: str, axis: int, index: int) -> list[Node]:
    size = _size_or_one((editor.shape(x) or ())[axis])
    index %= size
    if size == 1:
        return [reshape_node(editor, x, output)]
    part = editor.make_node("slice", (x,), output, axis=axis, start=index, stop=index + 1)
    return [part, reshape_node(editor, part.output, output)]


def _lower_select_by_integer(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    x = _input_with_same_batch(editor, node, args)
    axis = int(args["dim"]) % len(editor.shape(x) or ())
    require_match(axis and isinstance(args["index"], int))
    return _lower_select(editor, x, node.output, axis, args["index"])


def _lower_getitem(editor: Editor, node: Node, _: OpArguments) -> list[Node] | str:
    """Replace a node that takes one entry of the list that a chunk, split or unbind returns."""
    maker = editor.makers.get(node.inputs[0]) if node.inputs else None
    index = node.attrs["args"][1]
    if maker is None or not isinstance(index, int):
        raise NoMatchError
    if aten_name(maker) not in _PARTS:
        return lower_first_result(editor, node, maker)
    found = bind_arguments(maker)
    (x,) = editor.float_inputs(node, found.get("self"))
    shape = editor.shape(x) or ()
    axis = int(found["dim"]) % len(shape)
    require_match(axis)
    if aten_name(maker) == "unbind":
        return _lower_select(editor, x, node.output, axis, index)
    widths = _PARTS[aten_name(maker)](found, _size_or_one(shape[axis]))
    start = sum(widths[: index % len(widths)])
    return _lower_range_of_axis(editor, x, node.output, axis, start, start + widths[index])


def _sizes_of_parts(size: int, width: int) -> list[int]:
    return [min(width, size - start) for start in range(0, size, width)]


_PARTS: Mapping[str, Callable[[dict[str, Json], int], list[int]]] = {
    "chunk": lambda found, size: _sizes_of_parts(size, -(-size // int(found["chunks"]))),
    "split": lambda found, size: _sizes_of_parts(size, n) if isinstance(n := found["split_size"], int) else list(n),
    "split_with_sizes": lambda found, size: list(found["split_sizes"]),
    "unbind": lambda found, size: [1] * size,
}
"""Operation that returns a list -> function from (arguments, axis size) to the sizes of the list's entries."""


def _lower_cat(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    names, shape = editor.float_inputs(node, *args["tensors"]), editor.shape(node.output)
    if not shape:
        raise NoMatchError
    axis = int(args["dim"]) % len(shape)
    parts = [editor.shape(name) or () for name in names]
    require_match(axis and all(len(part) == len(shape) and part[:axis] == shape[:axis] for part in parts))
    return [native_node("concat", tuple(names), node.output, axis=axis)]


def _lower_shuffle(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    x = _input_with_same_batch(editor, node, args)
    require_match(len(editor.shape(x) or ()) == 4)
    return [native_node("channel_shuffle", (x,), node.output, groups=args["groups"])]


_RESHAPES = "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_copy view_as reshape_as"

RULES: Mapping[str, Lowering] = {
    **dict.fromkeys(_RESHAPES.split(), _lower_reshape),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT"), _lower_permute),
    "expand": _input_of_same_size,
    **dict.fromkeys(("slice", "narrow"), _lower_slice),
    "select": _lower_select_by_integer,
    "getitem": _lower_getitem,
    **dict.fromkeys(("cat", "concat", "concatenate"), _lower_cat),
    "channel_shuffle": _lower_shuffle,
}


# -- shapes between native nodes ---------------------------------------------------------------------------------------

_VIEWS = ("reshape", "flatten")


def _recognise_shuffle(editor: Editor, node: Node) -> list[Node]:
    """Replace a reshape to [N, g, C / g, H, W], a swap of axes 1 and 2, and a reshape back by a channel shuffle."""
    made = editor.shape(node.output) or ()
    require_match(node.op == "reshape" and len(made) == 4)
    turned = editor.match_maker(node.inputs[0], "transpose")
    require_match(turned.native and list(turned.attrs["axes"]) == [0, 2, 1, 3, 4])
    cut = editor.match_maker(turned.inputs[0], "reshape")
    require_match(cut.native)
    parts = editor.shape(cut.output) or ()
    require_match(editor.shape(cut.inputs[0]) == made and parts[3:] == made[2:])
    return [native_node("channel_shuffle", cut.inputs, node.output, groups=parts[1])]


def _merge_views(editor: Editor, node: Node) -> list[Node] | str | None:
    """Merge consecutive reshapes, or consecutive transposes."""
    require_match(node.op in (*_VIEWS, "transpose"))
    before = editor.makers.get(node.inputs[0])
    if node.op == "transpose":
        axes = list(node.attrs["axes"])
        if before is not None and before.op == "transpose":
            axes = [before.attrs["axes"][axis] for axis in axes]
            if axes == sorted(axes):
                return before.inputs[0]
            return [native_node("transpose", before.inputs, node.output, axes=axes)]
        return node.inputs[0] if axes == sorted(axes) else None
    source = before.inputs[0] if before is not None and before.op in _VIEWS else node.inputs[0]
    made = editor.shape(node.output) or ()
    if editor.shape(source) == made:
        return source
    require_match(source != node.inputs[0])
    return [reshape_node(editor, source, node.output)]


TIDY: tuple[Rule, ...] = (_recognise_shuffle, _merge_views)
"""Rules that merge views between native nodes."""


# -- Sums and products with what is the same for every example: numbers, weights, rows of constants --------------------


_NAMES = ("add", "sub", "mul", "div", "neg", "rsub", "addcmul")


def constant_argument(editor: Editor, arg: Json, like: str) -> Tensor:
    """Return the argument `arg` as a tensor that can be added to one example of the value `like`.

    The tensor has the axes of `like` without the batch, each of the size in `like` or 1. Raise `NoMatchError` if the
    argument differs between examples, or does not fit `like`.
    """
    shape = editor.shape(like)
    if not shape or len(shape) < 2:
        raise NoMatchError
    single = constant_number(arg, editor.tensors)
    dtype = getattr(torch, editor.values[like].dtype)
    if single is not None:
        return torch.full((1,) * (len(shape) - 1), single, dtype=dtype)
    name = weight_name(arg)
    tensor = editor.tensors[name] if name is not None else expanded_row(editor.makers, editor.tensors, value_name(arg))
    if tensor is None or tensor.dim() > len(shape) or tensor.dtype != dtype:
        raise NoMatchError
    tensor = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    require_match(
        tensor.shape[0] == 1 and all(size in (1, own) for size, own in zip(tensor.shape[1:], shape[1:], strict=True))
    )
    return tensor[0]


def is_constant(editor: Editor, arg: Json) -> bool:
    """Return whether an argument is a number, a weight, or a value that is the same for every example."""
    named = value_name(arg)
    return named is None or expanded_row(editor.makers, editor.tensors, named) is not None


def lower_constant_operand(editor: Editor, node: Node) -> list[Node]:
    """Replace a sum or product with a constant; call this after formulas such as GELU have been recognised."""
    require_match(not node.native and aten_name(node) in _NAMES)
    name, found = aten_name(node), bind_arguments(node)
    if name == "addcmul":
        return _lower_addcmul(editor, node, found)
    arg, other, alpha = found["self"], found.get("other", -1), finite_number(found.get("alpha", 1))
    first = not is_constant(editor, arg)
    if not first:
        arg, other = other, arg
    (x,) = editor.float_inputs(node, arg)
    require_match(editor.shape(x) == editor.shape(node.output))
    constant = constant_argument(editor, other, x)
    if name in ("mul", "neg"):
        return [_node_with_constant(editor, node, "mul_constant", x, constant)]
    if name == "div":
        require_match(first)
        return [_node_with_constant(editor, node, "mul_constant", x, constant.reciprocal())]
    if name == "add" or (name == "sub" and first):
        require_match(first or alpha == 1)
        return [_node_with_constant(editor, node, "add_constant", x, constant * (-alpha if name == "sub" else alpha))]
    # constant - alpha x, which rsub has the other way round
    require_match(name == "sub" or first)
    turned = editor.make_node(
        "mul_constant", (x,), node.output, _add_constant_weight(editor, node.output, torch.full_like(constant, -alpha))
    )
    return [turned, _node_with_constant(editor, node, "add_constant", turned.output, constant)]


def _lower_addcmul(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Lower ``self + value * tensor1 * tensor2`` to a product and a sum if one of the two tensors is a constant."""
    factors = [args["tensor1"], args["tensor2"]]
    if is_constant(editor, factors[1]):
        factors.reverse()
    (x,) = editor.float_inputs(node, factors[1])
    require_match(is_constant(editor, factors[0]) and editor.shape(x) == editor.shape(node.output))
    scale = constant_argument(editor, factors[0], x) * finite_number(args["value"])
    product = editor.make_node("mul_constant", (x,), node.output, _add_constant_weight(editor, node.output, scale))
    if is_constant(editor, args["self"]):
        shift = constant_argument(editor, args["self"], x)
        return [product, _node_with_constant(editor, node, "add_constant", product.output, shift)]
    (other,) = editor.float_inputs(node, args["self"])
    require_match(editor.shape(other) == editor.shape(x))
    return [product, native_node("add", (other, product.output), node.output)]


def _add_constant_weight(editor: Editor, like: str, constant: Tensor) -> dict[str, str]:
    return {"constant": editor.add_constant(f"{like}.constant", constant)}


def _node_with_constant(editor: Editor, node: Node, op: str, x: str, constant: Tensor) -> Node:
    return native_node(op, (x,), node.output, _add_constant_weight(editor, node.output, constant))


def without_negative_zeros(graph: Graph, captured: Graph) -> Graph:
    """Return the graph with -0.0 replaced by 0.0 in folded weights, except in those that a torch operation reads.

    Folding a batch norm multiplies pruned weights by negative factors, which gives -0.0; in a file its sign takes a bit
    per weight. The engine's operations ignore the sign of a zero. `captured` is the graph before weights were folded.
    """
    in_torch = {name for one in graph.nodes if not one.native for name in one.weights.values()}
    made = {
        name: tensor + 0.0
        for name, tensor in graph.tensors.items()
        if tensor is not captured.tensors.get(name) and name not in in_torch and tensor.is_floating_point()
    }
    return replace(graph, tensors={**graph.tensors, **made}) if made else graph
