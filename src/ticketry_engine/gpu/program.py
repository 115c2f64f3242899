"""Runs the nodes of a graph on a GPU, and registers the kernels as torch operations.

Sparse layers run in the group kernel, everything else in torch. The kernels are registered as torch operations, so that
torch.compile, torch.export and CUDA graphs can use them:

    ticketry::group_conv2d   act(conv2d(x) + bias + residual) with a weight in `tables.GroupTables`
    ticketry::group_linear   act(x weight^T + bias + residual) with a weight in `tables.GroupTables`
    ticketry::turn           a copy of x in the inner or the outer layout
    ticketry::inner_layer_norm, ticketry::inner_pool2d

Tensors have the shapes that torch's operations have; the inner layout (batch innermost) and the outer layout, which
torch's layers prefer, differ only in their strides (see `tables`). An input that is not in the inner layout is
converted first. On a CPU the operations run only if TRITON_INTERPRET=1 was set before this module was imported, for
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor

from ticketry_engine.errors import EngineError
from ticketry_engine.gpu import kernels
from ticketry_engine.gpu.plan import (
    LAYERS,
    Config,
    LayerChoice,
    LayerFacts,
    choose_config,
    find_batch_last_values,
    runs_on_batch_last_inputs,
)
from ticketry_engine.gpu.tables import (
    EIGHT,
    GroupTables,
    batch_last_strides,
    empty_batch_first,
    empty_batch_last,
    has_taps,
    is_batch_last,
    pack_group_tables,
    round_up,
)
from ticketry_engine.ir import Graph, Node, last_uses
from ticketry_engine.ir.native import dtype_name, make_activation_function
from ticketry_engine.ir.native_shapes import window_count
from ticketry_engine.ir.reference import Cast, bind_node, with_output_check

_WIDE = 1 << 31
_TURN = 64
_POOL = 256
_NORMED = 1 << 14
"""Number of elements that a program of a layer norm keeps in registers: 64 in each thread."""
_WIDEST = 1 << 13

Indices = Sequence[int]


# -- convolution -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_conv2d", mutates_args=())
def group_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    places: Tensor,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    act: str,
    slope: float,
) -> Tensor:
    """Return ``act(conv2d(x) + bias + residual)``, stored with the batch as innermost axis.

    Args:
        x: [N, C, H, W] in float16, bfloat16 or float32 (multiplied as TF32); all tensors have the same dtype.
        weight, tiles, rows, places: fields of `tables.GroupTables`, packed for this padding and dilation.
        outputs: number of output channels.
        act: an activation of `ir.native`, or "" for none; "leaky_relu" uses `slope`.
    """
    out = _empty_conv_output(x, outputs, kernel, stride, padding, dilation)
    x, residual = _prepare_operands(x, weight, bias, residual, out)
    if not out.numel():
        return out
    taps = has_taps(kernel, padding)
    run = round_up(x.shape[0])
    product = _Product(x, weight, bias, residual, out, tiles, rows, places, act, slope)
    if not taps and tuple(stride) == (1, 1):  # the pixels of a channel are one contiguous run
        product.launch(_ImageShape(x.shape[2] * x.shape[3] * run))
    else:
        images = _ImageShape(run, x.shape[2:], out.shape[2:], stride)
        product.launch(images, taps=taps, border=max(padding) > 0)
    return out


def _empty_conv_output(
    x: Tensor, outputs: int, kernel: Indices, stride: Indices, padding: Indices, dilation: Indices
) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return empty_batch_last((x.shape[0], outputs, *(window_count(*axis) for axis in axes)), x)


@group_conv2d.register_fake
def _group_conv2d_fake(x: Tensor, *rest: Any) -> Tensor:
    outputs, kernel, stride, padding, dilation, _, _ = rest[6:]
    return _empty_conv_output(x, outputs, kernel, stride, padding, dilation)


# -- linear ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_linear", mutates_args=())
def group_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    places: Tensor,
    outputs: int,
    act: str,
    slope: float,
) -> Tensor:
    """Return ``act(x @ weight.T + bias + residual)`` for x [tokens, I], stored with tokens as innermost axis.

    The arguments have the same meaning as in `group_conv2d`.
    """
    out = empty_batch_last((x.shape[0], outputs), x)
    x, residual = _prepare_operands(x, weight, bias, residual, out)
    if out.numel():
        product = _Product(x, weight, bias, residual, out, tiles, rows, places, act, slope)
        product.launch(_ImageShape(round_up(x.shape[0])))
    return out


@group_linear.register_fake
def _group_linear_fake(x: Tensor, *rest: Any) -> Tensor:
    outputs, _, _ = rest[6:]
    return empty_batch_last((x.shape[0], outputs), x)


# -- launching ---------------------------------------------------------------------------------------------------------


def _prepare_operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return x and the residual with the batch innermost; raise `EngineError` if dtype, device or shape differ."""
    for name, one in {"weight": weight, "bias": bias, "residual": residual}.items():
        if one is not None and (one.dtype != x.dtype or one.device != x.device):
            raise EngineError(f"the {name} is {one.dtype} on {one.device}, but x is {x.dtype} on {x.device}")
    if residual is not None and residual.shape != out.shape:
        raise EngineError(f"the residual has the shape {list(residual.shape)}, not {list(out.shape)}")
    return _to_batch_last(x), None if residual is None else _to_batch_last(residual)


def _to_batch_last(x: Tensor) -> Tensor:
    return x if is_batch_last(x) else _change_layout(x, True)


@dataclass(frozen=True)
class _ImageShape:
    """Sizes of a layer's images: their padded number, height and width before and after the layer, and the stride."""

    run: int
    size: Indices = (1, 1)
    out_size: Indices = (1, 1)
    stride: Indices = (1, 1)


@dataclass(frozen=True, eq=False)
class _Product:
    """The tensors of one call of the group kernel: its operands and its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    out: Tensor
    tiles: Tensor
    rows: Tensor
    places: Tensor
    act: str
    slope: float

    def launch(self, images: _ImageShape, *, taps: bool = False, border: bool = False) -> None:
        """Run the group kernel; `taps` and `border` are passed to `kernels.group_product`."""
        x, out, (count, tile) = self.x, self.out, (self.tiles.shape[0], self.rows.shape[1])
        outputs = images.run * images.out_size[0] * images.out_size[1]
        bias, residual = (x if one is None else one for one in (self.bias, self.residual))
        arguments = (
            x, self.weight, bias, residual, out, self.tiles, self.rows, self.places, images.run // EIGHT,
            *images.size, *images.out_size, *images.stride, count,
        )  # fmt: skip
        constants = {
            "TILE": tile,
            "TAPS": taps,
            "BORDER": border,
            "WIDE": max(_storage_extent(x), _storage_extent(out)) >= _WIDE,
            "ACT": self.act,
            "SLOPE": self.slope,
            "BIAS": self.bias is not None,
            "RESIDUAL": self.residual is not None,
            "PRECISION": "tf32",
            # Triton's interpreter multiplies the bits of bfloat16 as integers.
            "WIDEN": x.dtype == torch.bfloat16 and x.device.type == "cpu",
        }

        def launch(config: Config) -> None:
            kernels.group_product[(count * triton.cdiv(outputs, config.pixels),)](
                *arguments,
                **constants,
                PIXELS=config.pixels,
                COLUMNS=config.columns,
                num_warps=config.warps,
                num_stages=config.stages,
            )

        key = (x.dtype, tile, count, self.weight.numel(), images.run, *images.size, *images.stride, taps, border)
        launch(choose_config(key, tile, outputs, count, x, launch))


def _storage_extent(x: Tensor) -> int:
    """Return the number of elements from the tensor's first to its last element in memory, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


# -- layouts -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::turn", mutates_args=())
def turn(x: Tensor, inner: bool) -> Tensor:
    """Return a copy of x [N, C, H, W] or [tokens, C] in another memory layout.

    If `inner`, the copy has the batch as innermost axis, else torch's layout.
    """
    return _change_layout(x, inner)


def _change_layout(x: Tensor, inner: bool) -> Tensor:
    out = _empty_in_layout(x, inner)
    if not out.numel():
        return out
    if x.dim() == 4 and x.shape[2] > 1 and x.stride(2) != x.shape[3] * x.stride(3):
        x = x.contiguous(memory_format=torch.channels_last)  # rows are not contiguous
    axes = _three_axes(x, out)
    programs = axes[0][0] * triton.cdiv(axes[1][0], _TURN) * triton.cdiv(axes[2][0], _TURN)
    wide = max(_storage_extent(x), _storage_extent(out)) >= _WIDE
    kernels.transpose[(programs,)](x, out, *(step for axis in axes for step in axis), BLOCK=_TURN, WIDE=wide)
    return out


def _empty_in_layout(x: Tensor, inner: bool) -> Tensor:
    return empty_batch_last(x.shape, x) if inner else empty_batch_first(x.shape, x)


turn.register_fake(_empty_in_layout)


def _three_axes(x: Tensor, out: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Return (size, stride in x, stride in out) of three axes, in the order that the kernel `transpose` needs."""
    if x.dim() == 2:
        return (1, 0, 0), (x.shape[1], x.stride(1), out.stride(1)), (x.shape[0], x.stride(0), out.stride(0))
    n, c, h, w = x.shape
    (x_n, x_c, _, x_p), (y_n, y_c, _, y_p) = x.stride(), out.stride()
    if (x_c, y_c) == (h * w * x_p, h * w * y_p):
        return (1, 0, 0), (c * h * w, x_p, y_p), (n, x_n, y_n)  # channels and pixels form one axis: NCHW
    return (h * w, x_p, y_p), (c, x_c, y_c), (n, x_n, y_n)


# -- norm --------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::inner_layer_norm", mutates_args=())
def inner_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the layer norm of x [tokens, C], stored with tokens as innermost axis, as the group kernel reads it."""
    out = empty_batch_last(x.shape, x)
    if not out.numel():
        return out
    if x.shape[1] > _WIDEST:  # does not fit in registers
        normed: Tensor = turn(torch.layer_norm(x, x.shape[1:], weight, bias, eps), True)
        return normed
    x = x.contiguous()
    scale, shift = (x, x) if weight is None or bias is None else (weight, bias)
    wide = max(_storage_extent(x), _storage_extent(out)) >= _WIDE
    features = triton.next_power_of_2(x.shape[1])
    tokens = max(EIGHT, min(32, _NORMED // features))
    kernels.layer_norm[(triton.cdiv(x.shape[0], tokens),)](
        x, scale, shift, out, round_up(x.shape[0]) // EIGHT, *x.shape, eps,
        AFFINE=weight is not None, TOKENS=tokens, FEATURES=features, WIDE=wide,
        num_warps=max(1, min(16, tokens * features // 2048)),
    )  # fmt: skip
    return out


@inner_layer_norm.register_fake
def _inner_layer_norm_fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_batch_last(x.shape, x)


# -- pooling -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::inner_pool2d", mutates_args=())
def inner_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
    mode: str,
) -> Tensor:
    """Return max or average pooling of x [N, C, H, W] as in torch, but stored with the batch as innermost axis.

    Args:
        mode: "max", "mean" (over elements inside the image) or "padded_mean" (padding counts as zeros).
    """
    out = _empty_pool_output(x, kernel, stride, padding, dilation, ceil)
    if not out.numel():
        return out
    x = _to_batch_last(x)
    run = round_up(x.shape[0])
    grid = (out.shape[1] * triton.cdiv(out.shape[2] * out.shape[3] * run, _POOL),)
    kernels.pool[grid](
        x, out, run // EIGHT, *x.shape[2:], *out.shape[2:], *stride, *padding, *dilation, *kernel,
        MODE=mode, BLOCK=_POOL, WIDE=max(_storage_extent(x), _storage_extent(out)) >= _WIDE,
    )  # fmt: skip
    return out


@inner_pool2d.register_fake
def _inner_pool2d_fake(x: Tensor, *rest: Any) -> Tensor:
    return _empty_pool_output(x, *rest[:-1])


def _empty_pool_output(
    x: Tensor, kernel: Indices, stride: Indices, padding: Indices, dilation: Indices, ceil: bool
) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return empty_batch_last((*x.shape[:2], *(window_count(*axis, ceil=ceil) for axis in axes)), x)


# -- values and weights ------------------------------------------------------------------------------------------------


@dataclass
class GpuValue:
    """A value of the graph, stored in torch's layout, with the batch as innermost axis, or in both layouts.

    The group kernel reads and writes values with the batch as innermost axis (the inner layout). Torch's layout is
    called the outer layout.
    """

    shape: torch.Size
    outer: Any = None
    inner: Tensor | None = None
    """The value as [N, C, H, W] or [tokens, C] in the inner layout, or None."""

    @classmethod
    def from_torch(cls, made: Any) -> GpuValue:
        """Wrap a result of torch: a tensor in torch's (outer) layout, a number or a list."""
        return cls(made.shape if isinstance(made, Tensor) else torch.Size(), outer=made)

    def get_batch_first(self) -> Any:
        """Return the value in torch's (outer) layout; if it had to be converted, keep the result for later calls."""
        if self.outer is None:
            self.outer = turn(self.inner, False).reshape(self.shape)
        return self.outer

    def get_batch_last_matrix(self) -> Tensor:
        """Return the value in torch's (outer) layout: images unchanged, any other tensor flattened to [tokens, C]."""
        outer: Tensor = self.get_batch_first()
        return outer if len(self.shape) in (2, 4) else outer.flatten(0, -2)

    def get_batch_last(self) -> Tensor:
        """Return the value in the group kernel's (inner) layout; after converting it, keep the result for later."""
        if self.inner is None:
            self.inner = turn(self.get_batch_last_matrix(), True)
        return self.inner


Step: TypeAlias = Callable[..., GpuValue]

Clock: TypeAlias = "Callable[[Callable[[], GpuValue]], tuple[GpuValue, float]]"
"""Function that calls a function and returns the function's result and its seconds."""


class Weights:
    """A model's dense and packed weights on a device, which its programs for all input shapes share."""

    def __init__(self, graph: Graph, facts: Mapping[str, LayerFacts], dtype: torch.dtype, device: torch.device) -> None:
        self.graph = graph
        self.facts = facts
        self.dtype = dtype
        self.device = device
        self.cast = Cast(graph, dtype_name(dtype))
        self._tables: dict[tuple[str, int], GroupTables] = {}
        self._dense: dict[tuple[str, str], Tensor] = {}

    def tables(self, node: Node, tile: int) -> GroupTables:
        """Return the packed weight of a layer, divided into tiles of `tile` rows."""
        key = (node.output, tile)
        if key not in self._tables:
            weight = self.graph.tensors[node.weights["weight"]]
            window = ("padding", "dilation", "groups") if node.op == "conv2d" else ()
            packed = pack_group_tables(
                weight, tile=tile, dtype=self.dtype, **{name: node.attrs[name] for name in window}
            )
            self._tables[key] = packed.to(self.device)
        return self._tables[key]

    def dense(self, node: Node) -> dict[str, Tensor]:
        """Return a node's dense weights on the device, by their names in the graph."""
        how = "channels_last" if node.op == "conv2d" else ""
        return {name: self._dense_weight(name, how) for name in node.weights.values()}

    def two_four(self, node: Node) -> Tensor:
        """Return a linear layer's weight as torch's semi-structured (2:4) tensor."""
        key = (node.weights["weight"], "2:4")
        if key not in self._dense:
            dense = self.cast(self.graph.tensors[key[0]]).to(self.device)
            self._dense[key] = torch.sparse.to_sparse_semi_structured(dense)
        return self._dense[key]

    def _dense_weight(self, name: str, how: str) -> Tensor:
        tensor = self.graph.tensors[name]
        key = (name, how if tensor.dim() == 4 else "")
        if key not in self._dense:
            made = self.cast(tensor).to(self.device)
            self._dense[key] = made.contiguous(memory_format=torch.channels_last) if key[1] else made
        return self._dense[key]

    @property
    def bytes(self) -> int:
        """Number of bytes on the device of all weights that were used so far."""
        dense = sum(part.nbytes for one in self._dense.values() for part in _inner_tensors(one))
        return dense + sum(tables.bytes for tables in self._tables.values())


def _inner_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that store a semi-structured (2:4) tensor; for a dense tensor, the tensor itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


@dataclass
class GpuProgram:
    """A graph prepared to run with one kernel choice for each layer."""

    graph: Graph
    choices: Mapping[str, LayerChoice]
    weights: Weights
    _steps: list[tuple[Step, tuple[str, ...], str, tuple[str, ...]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._wanted = find_batch_last_values(self.graph, self.choices)
        nodes = self.graph.nodes
        done = last_uses([(node.inputs, (node.output,)) for node in nodes], self.graph.output_names)
        for node, free in zip(nodes, done, strict=True):
            self._steps.append((self._build_step(node), node.inputs, node.output, free))

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Run the graph and return its results by name, in the dtypes of the graph."""
        return self._run(inputs, lambda name, run, reads: run(*reads))

    def timed(self, inputs: Sequence[Tensor], clock: Clock) -> dict[str, float]:
        """Return the seconds of each node, measured by `clock`, by the name of the node's output."""
        seconds: dict[str, float] = {}

        def measure(name: str, run: Step, reads: list[GpuValue]) -> GpuValue:
            made, seconds[name] = clock(lambda: run(*reads))
            return made

        self._run(inputs, measure)
        return seconds

    def _run(self, inputs: Sequence[Tensor], call: Callable[[str, Step, list[GpuValue]], GpuValue]) -> dict[str, Any]:
        cast = self.weights.cast
        held = {name: GpuValue.from_torch(cast(x)) for name, x in zip(self.graph.inputs, inputs, strict=True)}
        for run, reads, made, done in self._steps:
            held[made] = call(made, run, [held[name] for name in reads])
            for name in done:
                del held[name]
        return {
            name: self._cast_to_dtype_of_graph(name, held[name].get_batch_first()) for name in self.graph.output_names
        }

    def _cast_to_dtype_of_graph(self, name: str, made: Any) -> Any:
        dtype = getattr(torch, self.graph.values[name].dtype, None)
        return made.to(dtype) if isinstance(made, Tensor) and isinstance(dtype, torch.dtype) else made

    # -- steps

    def _build_step(self, node: Node) -> Step:
        choice = self.choices.get(node.output)
        if choice is not None and choice.kernel == "group":
            return _build_group_step(node, choice, self.weights)
        if node.op == "layer_norm" and node.output in self._wanted:
            held = self.weights.dense(node)
            scale, shift = (held.get(node.weights.get(role, "")) for role in ("weight", "bias"))
            eps = node.attrs["eps"]
            return lambda x: GpuValue(x.shape, inner=inner_layer_norm(x.get_flat(), scale, shift, eps))
        outer = self._build_outer_function(node, two_four=choice is not None and choice.kernel == "2:4")
        flexible = node.op not in LAYERS and runs_on_batch_last_inputs(self.graph, node)
        inner = _build_inner_function(node, self.weights) if flexible else None

        def run(*reads: GpuValue) -> GpuValue:
            if inner is None or reads[0].outer is not None:
                return GpuValue.from_torch(outer(*[one.get_batch_first() for one in reads]))
            made = inner(*[one.get_batch_last() for one in reads])
            pools = made.dim() == 4 or node.op == "global_avg_pool"
            return GpuValue(made.shape if pools else reads[0].shape, inner=made)

        return run

    def _build_outer_function(self, node: Node, two_four: bool) -> Callable[..., Any]:
        cast, weights = self.weights.cast, self.weights.dense(node)
        if two_four:
            weights[node.weights["weight"]] = self.weights.two_four(node)
        function = bind_node(cast.convert_node(node), weights, device=self.weights.device)
        return (
            function
            if node.native
            else with_output_check(function, cast.convert_value(self.graph.values[node.output]), node)
        )


# -- sparse layers -----------------------------------------------------------------------------------------------------


def _build_group_step(node: Node, choice: LayerChoice, weights: Weights) -> Step:
    tables = weights.tables(node, choice.tile)
    bias = weights.dense(node).get(node.weights.get("bias", ""))
    weight = weights.graph.tensors[node.weights["weight"]]
    packed = (tables.tiles, tables.rows, tables.places, len(weight))
    act = kernel_activation(node.attrs["act"])

    def read_inner(residual: GpuValue | None) -> Tensor | None:
        return None if residual is None else residual.get_batch_last()

    if node.op == "linear":

        def linear(x: GpuValue, residual: GpuValue | None = None) -> GpuValue:
            made = group_linear(x.get_batch_last(), tables.weight, bias, read_inner(residual), *packed, *act)
            return GpuValue(torch.Size((*x.shape[:-1], len(weight))), inner=made)

        def linear_of_pixels(*reads: GpuValue) -> GpuValue:
            x = reads[0]
            if len(x.shape) != 4:
                return linear(*reads)
            # A linear layer on the last axis of an image treats its pixels as tokens.
            made = linear(*[GpuValue.from_torch(one.get_batch_first().flatten(0, 2)) for one in reads])
            return GpuValue.from_torch(made.get_batch_first().reshape(*x.shape[:-1], made.shape[-1]))

        return linear_of_pixels

    window = [list(weight.shape[2:]), *(list(node.attrs[name]) for name in ("stride", "padding", "dilation"))]

    def conv2d(x: GpuValue, residual: GpuValue | None = None) -> GpuValue:
        made = group_conv2d(x.get_batch_last(), tables.weight, bias, read_inner(residual), *packed, *window, *act)
        return GpuValue(made.shape, inner=made)

    return conv2d


def kernel_activation(act: str | dict[str, float] | None) -> tuple[str, float]:
    """Return an activation as the kernels' arguments (name, slope); the name is "" if there is no activation."""
    if isinstance(act, dict):
        return "leaky_relu", float(act["leaky_relu"])
    return act or "", 0.0


# -- operations in either layout ---------------------------------------------------------------------------------------


def view_batch_last(x: Tensor) -> Tensor:
    """View a tensor in the inner layout as contiguous [C, H, W, P] or [C, P], where P is the padded batch size."""
    run = round_up(x.shape[0])
    shape = (*x.shape[1:], run)
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return x.as_strided(shape, tuple(reversed(steps)))


def view_batch_first(stored: Tensor, count: int) -> Tensor:
    """Return a contiguous tensor [C, H, W, P] or [C, P] as a view [`count`, C, H, W] or [`count`, C] without copying.

    `count` is the number of images or tokens; P is this number with padding.
    """
    shape = (count, *stored.shape[:-1])
    stored = stored.contiguous()
    return stored.as_strided(shape, batch_last_strides(shape))


def _build_inner_function(node: Node, weights: Weights) -> Callable[..., Tensor]:
    """Return a function that computes a node; its inputs and its result are in the inner layout (batch innermost)."""
    # Most operations call torch's function on tensors in memory order, with its axes renumbered.
    attrs = node.attrs
    if node.op in ("max_pool2d", "avg_pool2d"):
        mode = "max" if node.op == "max_pool2d" else "padded_mean" if attrs["count_include_pad"] else "mean"
        window = [list(attrs.get(name, (1, 1))) for name in ("kernel", "stride", "padding", "dilation")]
        return lambda x: inner_pool2d(x, *window, attrs["ceil"], mode)
    if node.op == "global_avg_pool":
        return lambda x: view_batch_first(view_batch_last(x).mean((1, 2), attrs["keepdim"]), x.shape[0])
    if node.op == "concat":
        return lambda *parts: view_batch_first(torch.cat([view_batch_last(part) for part in parts]), parts[0].shape[0])
    if node.op == "slice":
        start, length = attrs["start"], attrs["stop"] - attrs["start"]
        return lambda x: view_batch_first(view_batch_last(x).narrow(0, start, length), x.shape[0])
    if node.op == "affine":
        scale, shift = (weights.dense(node)[node.weights[role]].view(-1, 1, 1, 1) for role in ("scale", "shift"))
        act = make_activation_function(attrs["act"], may_overwrite=True)

        def affine(x: Tensor) -> Tensor:
            made = torch.addcmul(shift, view_batch_last(x), scale)
            return view_batch_first(made if act is None else act(made), x.shape[0])

        return affine
    function = bind_node(node, {})
    return lambda *parts: view_batch_first(function(*map(view_batch_last, parts)), parts[0].shape[0])
