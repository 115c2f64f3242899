"""Replaces group norms, sums over pixels, and products with one channel by operations of the CPU kernels.

Torch would compute them in operations that divide the network into separate regions of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ticketry_engine.capture.editor import (
    Editor,
    Lowering,
    NoMatchError,
    OpArguments,
    aten_name,
    bind_arguments,
    finite_number,
    require_match,
    weight_name,
)
from ticketry_engine.ir import Json, Node, native_node


def lower_image_statistics(editor: Editor, node: Node) -> list[Node] | str | None:
    """Replace a group norm, a sum over pixels, or a sum or product of images with images of one channel.

    The new nodes have operations of the engine.
    """
    rule = None if node.native else _IMAGE_RULES.get(aten_name(node))
    if rule is None or editor.values[node.output].dtype != "float32":
        raise NoMatchError
    return rule(editor, node, bind_arguments(node))


def _add_constant(editor: Editor, node: Node, role: str, tensor: Tensor) -> str:
    """Add a constant of type float32, and return its name."""
    return editor.add_constant(f"{node.output}.{role}", tensor.float())


_LEAST_EPS = 1e-20
"""Smallest eps of a group norm that is lowered: with less, the activation "inverse_root" could replace a variance."""


def _lower_group_norm(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a group norm of images by the engine's operations.

    Convolutions of images with one pixel compute the means of each group, and copy them to the group's channels.
    """
    (x,), groups = editor.float_inputs(node, args["input"], axes=4), int(args["num_groups"])
    given = {role: weight_name(args[role]) for role in ("weight", "bias") if args[role] is not None}
    gains, shifts = (editor.tensors.get(given.get(role) or "") for role in ("weight", "bias"))
    require_match(None not in given.values() and finite_number(args["eps"]) >= _LEAST_EPS)
    width = int((editor.shape(x) or ())[1] or 0) // groups
    group_of_channel = torch.eye(groups, dtype=torch.float64).repeat_interleave(width, 0)  # [channels, groups]
    gain_of_channel = group_of_channel if gains is None else group_of_channel * gains[:, None]
    means, opposites, scales = (
        _add_constant(editor, node, role, matrix[:, :, None, None])
        for role, matrix in (
            ("means", group_of_channel.t() / width),
            ("opposites", -group_of_channel),
            ("scales", gain_of_channel),
        )
    )
    eps = _add_constant(editor, node, "eps", torch.full((groups,), float(args["eps"])))
    nodes: list[Node] = []

    def append_node(op: str, *inputs: str, act: Json = None, **weights: str) -> str:
        attrs = {} if op == "global_avg_pool" else {"act": act}
        nodes.append(editor.make_node(op, inputs, node.output, weights, **attrs))
        return nodes[-1].output

    mean = append_node("conv2d", append_node("global_avg_pool", x), weight=means)
    centred = append_node("add", x, append_node("conv2d", mean, weight=opposites))
    squares = append_node("global_avg_pool", append_node("mul", centred, centred))
    inverse_deviation = append_node("conv2d", squares, weight=means, bias=eps, act="inverse_root")
    scaled = append_node("mul", centred, append_node("conv2d", inverse_deviation, weight=scales))
    if shifts is not None and bool(shifts.any()):
        append_node("add_constant", scaled, constant=_add_constant(editor, node, "shifts", shifts[:, None, None]))
    return [*nodes[:-1], replace(nodes[-1], output=node.output)]


def _lower_pixel_sum(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a sum over the rows or columns of images, or over both, by a mean times a number of pixels."""
    (x,) = editor.float_inputs(node, args["self"], axes=4)
    shape, axes = editor.shape(x) or (), {axis % 4 for axis in args["dim"] or ()}
    require_match(axes and axes <= {2, 3} and args.get("dtype") is None and all(shape[1:]))
    kernel = [int(shape[axis] or 0) if axis in axes else 1 for axis in (2, 3)]
    if tuple(kernel) == shape[2:]:
        mean = editor.make_node("global_avg_pool", (x,), node.output)
    else:
        mean = editor.make_node("avg_pool2d", (x,), node.output, kernel=kernel, stride=kernel)
    pixels = _add_constant(editor, node, "pixels", torch.full((1, 1, 1), float(prod(kernel))))
    total = editor.make_node("mul_constant", (mean.output,), node.output, {"constant": pixels})
    return [
        mean,
        total,
        native_node("reshape", (total.output,), node.output, shape=list(editor.shape(node.output) or ())),
    ]


def _lower_product_with_channel(editor: Editor, node: Node, args: OpArguments) -> list[Node]:
    """Replace a sum or product of images with images of one channel, which a convolution copies to all channels."""
    require_match(args.get("alpha", 1) == 1)
    names, made = editor.float_inputs(node, args["self"], args["other"], axes=4), editor.shape(node.output) or ()
    x, single = names if editor.shape(names[0]) == made else names[::-1]
    require_match(editor.shape(x) == made and editor.shape(single) == (made[0], 1, *made[2:]))
    ones = _add_constant(editor, node, "copies", torch.ones(int(made[1] or 0), 1, 1, 1))
    copies = editor.make_node("conv2d", (single,), node.output, {"weight": ones})
    return [copies, native_node(aten_name(node), (x, copies.output), node.output)]


_IMAGE_RULES: Mapping[str, Lowering] = {
    "group_norm": _lower_group_norm,
    "sum": _lower_pixel_sum,
    **dict.fromkeys(("add", "mul"), _lower_product_with_channel),
}
