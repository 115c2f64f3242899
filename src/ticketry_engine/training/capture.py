"""Divide a traced call of a model into regions that run in kernels and nodes that run in torch, with autograd.

Modules with weights are single nodes of the trace (`torch.fx`); their parameters, hooks and buffers stay in the model.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ticketry_engine.ir import Node, native_node
from ticketry_engine.kernels.activations import SLOPES
from ticketry_engine.kernels.bfloat import FLOAT, HALF
from ticketry_engine.kernels.training.layer import images_per_block
from ticketry_engine.kernels.window import Array
from ticketry_engine.training.plan import LAYERS, TrainingRegion, fuse_norms, layer_name

LIMIT = 0.5
"""Density above which a layer runs in torch, or in kernels with all its weights."""

LIMITS = {"avx512": 0.7}
"""Target -> replacement of `LIMIT` for convolutions with windows larger than 1 x 1 if the batch fills whole blocks.

Measured, relative to dense kernels: 3x3 convolutions of 16 to 512 channels, with norms and ReLUs, took 0.83 to 0.95 at
70 %, and 0.93 to 1.03 at 80 %. 1x1 convolutions took 1.25 at 70 % with 1,024 channels, 0.91 with 256.
"""

DENSE = 4
"""Minimum number of dense convolutions for which a region without sparse layers is faster than torch.

Measured (AVX-512, 32 registers): dense convolutions take 0.5 to 1.1 of torch's time; the norms, ReLUs and sums around
them take a third.
"""

FULL = 1.15
"""Maximum ratio of the images that whole blocks hold to the images of the batch, for dense convolutions."""

LIMIT_LINEAR = 0.3
"""Replacement of `LIMIT` for linear layers, whose dense products are faster."""

SHORT = 64
"""Maximum number of weights per row with which a layer joins a region at any density, such as a first convolution."""

ALONE = 1 << 17
"""Minimum number of pruned weights in linear layers for a region without convolutions.

With fewer pruned weights, the fixed costs of a step exceed the savings. Measured, batch 128: 784-300-100-10 (266,200
weights) took 1.03, 0.90, 0.74 and 0.75 of the dense step's time at a density of 30, 20, 10 and 5 % (AVX-512);
3072-4096-4096-10 took 1.0, 0.75 and 0.35 at 50, 30 and 10 % (AVX2).
"""


@dataclass(frozen=True)
class CapturedCall:
    """A traced call, divided into steps: nodes that run in torch, and regions (groups of nodes) that run in kernels."""

    graph: fx.Graph
    order: list[fx.Node | FoundRegion]
    reasons: dict[str, str]
    """Name of a layer with weights that runs in torch -> the reason."""
    dense: set[str]
    """Names of the layers in regions that compute with all weights; pruned weights are zeros."""


@dataclass
class FoundRegion:
    """A region (group of nodes that run in kernels) under construction.

    It consists of nodes of the trace, and of the nodes that kernels run in their place.
    """

    tokens: bool = False
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    members: dict[fx.Node, str] = field(default_factory=dict)
    """Node of the trace -> the name of its value in the region."""
    inputs: dict[fx.Node, str] = field(default_factory=dict)
    outputs: list[fx.Node] = field(default_factory=list)
    seeds: int = 0
    """Number of layers that the mask makes faster: convolutions, and linear layers over tokens."""
    pruned: int = 0
    """Number of pruned weights in linear layers over examples: see `ALONE`."""
    dense: set[str] = field(default_factory=set)
    """Names of the convolutions that compute with all their weights: see `DENSE`."""

    @property
    def is_faster(self) -> bool:
        """Whether kernels are expected to run the region's nodes faster than torch."""
        return self.seeds > 0 or self.pruned >= ALONE or len(self.dense) >= DENSE

    def to_training_region(self) -> TrainingRegion:
        """Return the finished group of nodes as a `TrainingRegion`, which can be planned and run."""
        outputs = tuple(dict.fromkeys(self.members[node] for node in self.outputs))
        values = () if self.tokens else (self.inputs | self.members).items()
        flat = frozenset(name for node, name in values if len(shape_of(node) or ()) == 2)
        inputs, nodes = tuple(self.inputs.values()), tuple(self.nodes)
        return fuse_norms(TrainingRegion(inputs, outputs, nodes, self.weights, self.tokens, flat))


def capture(
    model: nn.Module,
    kept: Mapping[str, Array],
    graph: fx.Graph,
    *,
    dense: bool = False,
    limit: float = LIMIT,
    half: bool = False,
) -> CapturedCall:
    """Divide a traced call of a model into steps: single nodes that run in torch, and regions that run in kernels.

    A region is a group of connected nodes.

    Args:
        kept: name of a module under the mask -> bool array, True where a weight is retained.
        dense: whether convolutions may run in kernels that compute with all weights.
        limit: density up to which convolutions run in sparse kernels, for batches that fill whole blocks of images.
        half: whether values in kernels are bfloat16.
    """
    modules = dict(model.named_modules())
    finder = _RegionFinder(modules, kept, dense, limit, half)
    random = [node for node in graph.nodes if may_draw_random_numbers(node, modules)]
    finder.after.update(zip(random[1:], random, strict=False))
    for node in graph.nodes:
        finder.add_node(node)
    return finder.build_steps(graph)


class _RegionFinder:
    def __init__(
        self, modules: Mapping[str, nn.Module], kept: Mapping[str, Array], dense: bool, limit: float, half: bool
    ) -> None:
        self.modules, self.kept, self.dense, self.limit, self.half = modules, kept, dense, limit, half
        self.found: list[FoundRegion] = []
        self.of: dict[fx.Node, FoundRegion] = {}
        self.reasons: dict[str, str] = {}
        self.used: set[str] = set()
        """Modules with weights that are in regions; a second call of such a module runs in torch."""
        self.free: dict[fx.Node, Node] = {}
        """Nodes outside of regions that kernels can run, and that may be the first nodes of a region."""
        self.after: dict[fx.Node, fx.Node] = {}
        """Node that draws random numbers -> the previous such node."""

    def add_node(self, node: fx.Node) -> None:
        """If kernels can run a node, add it to a region; else leave the node to torch.

        A region is a group of connected nodes that run in kernels. The node begins a new region if it fits in none.
        """
        try:
            lowered = self._to_kernel_node(node)
        except Unsupported as why:
            if node.op == "call_module":
                self.reasons[str(node.target)] = str(why)
            return
        layer = str(node.target) if lowered is not None and lowered.op in LAYERS else None
        gains = layer is not None and self._is_faster_in_kernels(node, layer)
        sparse = layer is not None and (gains or prod(self._weight_shape_of(layer)[1:]) <= SHORT)
        dense = layer is not None and not sparse and self._runs_dense(node, layer)
        starts = sparse or dense
        layout = allowed_input_kinds(node, lowered)
        if self.half and layout == {True}:
            if layer is not None:
                self.reasons[layer] = "over tokens: no kernels in bfloat16"
            return
        layout -= {True} if self.half else set()
        neighbours = [region for region in self._candidate_regions(node) if region.tokens in layout]
        region = next((region for region in neighbours if not self._other_inputs_depend_on(node, region)), None)
        if layer is not None and not starts:
            self.reasons[layer] = self._why_faster_dense(node, layer)
            return
        if region is None:
            if not starts:
                if lowered is not None and True in layout and _may_begin_region(lowered):
                    self.free[node] = lowered
                return
            region = FoundRegion(tokens=True in layout)
            self.found.append(region)
            if region.tokens:
                self._add_with_predecessors(region, node.all_input_nodes[0])
        self._add_to_region(node, lowered, region)
        if layer is not None and dense:
            region.dense.add(layer)
        if layer is not None and gains:
            if isinstance(self.modules[layer], nn.Linear) and not region.tokens:
                region.pruned += int((~self.kept[layer]).sum())
            else:
                region.seeds += 1

    def _add_with_predecessors(self, region: FoundRegion, read: fx.Node) -> None:
        """If the node `read` is in `free`, add it to `region`, which is still empty, after the nodes that it needs."""
        if read in self.free:
            self._add_with_predecessors(region, read.all_input_nodes[0])
            self._add_to_region(read, self.free.pop(read), region)

    def _add_to_region(self, node: fx.Node, lowered: Node | None, region: FoundRegion) -> None:
        for read in node.all_input_nodes:
            if read not in region.members:
                region.inputs.setdefault(read, read.name)
        names = {one.name: name for one, name in (region.inputs | region.members).items()}
        region.members[node] = node.name if lowered is not None else names[node.all_input_nodes[0].name]
        self.of[node] = region
        if lowered is not None:
            region.nodes.append(replace(lowered, inputs=tuple(names[name] for name in lowered.inputs)))
            if lowered.op in LAYERS:
                region.weights[lowered.weights["weight"]] = self._weight_shape_of(str(node.target))
            if lowered.op in (*LAYERS, "batch_norm", "layer_norm"):
                self.used.add(str(node.target))

    # -- choose a region -----------------------------------------------------------------------------------------------

    def _candidate_regions(self, node: fx.Node) -> list[FoundRegion]:
        """Return the regions (groups of nodes that run in kernels) that `node` may join.

        First come those that compute inputs of `node`, then those on tokens that read an input of `node`.
        """
        # The second kind is how queries, keys and values get into one region.
        found = {id(self.of[read]): self.of[read] for read in node.all_input_nodes if read in self.of}
        for region in self.found:
            if region.tokens and any(read in region.inputs for read in node.all_input_nodes):
                found.setdefault(id(region), region)
        return list(found.values())

    def _other_inputs_depend_on(self, node: fx.Node, region: FoundRegion) -> bool:
        """Return whether an input of `node` depends on `region` through nodes outside of the region.

        If so, `node` cannot become part of the region.
        """
        seen: set[int] = set()
        queue = [read for read in node.all_input_nodes if self.of.get(read) is not region]
        while queue:
            one = queue.pop()
            whole = self.of.get(one)
            if whole is region:
                return True
            key = id(whole) if whole is not None else id(one)
            if key not in seen:
                seen.add(key)
                queue += list(whole.inputs) if whole is not None else self._predecessors(one)
        return False

    def _predecessors(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that must run before `node` if it runs in torch."""
        return [*node.all_input_nodes, *(self.after[node] for _ in range(node in self.after))]

    # -- choose nodes --------------------------------------------------------------------------------------------------

    def _weight_shape_of(self, layer: str) -> tuple[int, ...]:
        module = self.modules[layer]
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        return weight_shape(module)

    def _is_faster_in_kernels(self, node: fx.Node, layer: str) -> bool:
        kept = self.kept.get(layer)
        return kept is not None and float(kept.mean()) <= self._density_limit(node, layer)

    def _density_limit(self, node: fx.Node, layer: str) -> float:
        """Return the density above which a layer is faster dense than in sparse kernels."""
        if isinstance(self.modules[layer], nn.Linear):
            return LIMIT_LINEAR
        window = self._weight_shape_of(layer)[2:]
        return self.limit if fills_blocks(_count_images(node), half=self.half) and window != (1, 1) else LIMIT

    def _runs_dense(self, node: fx.Node, layer: str) -> bool:
        """Return whether a convolution runs in dense kernels, which is the case if they are as fast as torch."""
        groups = getattr(self.modules[layer], "groups", 1)
        return self.dense and groups == 1 and fills_blocks(_count_images(node), half=self.half)

    def _why_faster_dense(self, node: fx.Node, layer: str) -> str:
        kept = self.kept.get(layer)
        if kept is None:
            return "not in the mask: faster dense"
        if self._is_faster_in_kernels(node, layer):
            return "small linear layers without a convolution: faster dense"
        return f"density {float(kept.mean()):.2f}: above {self._density_limit(node, layer)} faster dense"

    def _to_kernel_node(self, node: fx.Node) -> Node | None:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if str(node.target) in self.used:
                raise Unsupported("called a second time")
            if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)):
                raise Unsupported("has hooks")
            return lower_module(node, module)
        return lower_function(node)

    def build_steps(self, graph: fx.Graph) -> CapturedCall:
        """Return the captured call; each step comes after the steps whose results it reads."""
        for region in self.found:
            if not region.is_faster:
                named = {node.name: node for node in region.members}
                for node in region.members:
                    del self.of[node]
                for lowered in region.nodes:
                    if lowered.op in LAYERS:
                        layer = layer_name(lowered)
                        self.reasons[layer] = self._why_faster_dense(named[lowered.output], layer)
        for node in graph.nodes:
            for read in node.all_input_nodes:
                maker = self.of.get(read)
                if maker is not None and self.of.get(node) is not maker and read not in maker.outputs:
                    maker.outputs.append(read)
        order: list[fx.Node | FoundRegion] = []
        done: set[int] = set()

        def append_after_inputs(step: fx.Node | FoundRegion) -> None:
            if id(step) in done:
                return
            done.add(id(step))
            for read in step.inputs if isinstance(step, FoundRegion) else self._predecessors(step):
                append_after_inputs(self.of.get(read, read))
            order.append(step)

        for node in graph.nodes:
            append_after_inputs(self.of.get(node, node))
        dense = {name for region in self.found if region.is_faster for name in region.dense}
        return CapturedCall(graph, order, self.reasons, dense)


def _may_begin_region(node: Node) -> bool:
    """Return whether a group of nodes that kernels run on tokens may begin with this node, although it is no layer."""
    return node.op == "layer_norm" or (node.op == "act" and node.attrs["act"] != "relu")


def _count_images(node: fx.Node) -> int:
    """Return the number of images in a value [images, channels, rows, columns]; 0 for other shapes."""
    shape = shape_of(node)
    return 0 if shape is None or len(shape) != 4 else int(shape[0])


def fills_blocks(images: int, *, half: bool = False) -> bool:
    """Return whether a batch of `images` fills whole blocks of the kernels almost completely.

    The number of images, rounded up to whole blocks, may be at most `FULL` times as large.
    """
    block = images_per_block(HALF if half else FLOAT)
    return 0 < -(-images // block) * block <= FULL * images


# -- lowering ----------------------------------------------------------------------------------------------------------


class Unsupported(Exception):
    """Error that is raised if a node must run in torch; the message is the reason."""


def shape_of(node: fx.Node) -> torch.Size | None:
    """Return the shape of a value; None if it is not a tensor."""
    found = getattr(node.meta.get("tensor_meta"), "shape", None)
    return found if isinstance(found, torch.Size) else None


def _require_images(node: fx.Node) -> torch.Size:
    shape = shape_of(node)
    if shape is None or len(shape) != 4:
        raise Unsupported(f"reads {None if shape is None else tuple(shape)}, not images x channels x rows x columns")
    return shape


def _build_layer_node(
    op: str, node: fx.Node, x: fx.Node, *, weight: bool = True, bias: bool = True, **attrs: Any
) -> Node:
    """Return a node for the operation `op` on x; `weight` and `bias` say which of these parameters the module has."""
    roles = [role for role, exists in (("weight", weight), ("bias", bias)) if exists]
    prefix = f"{node.target}." if node.target else ""
    return native_node(op, (x.name,), node.name, {role: prefix + role for role in roles}, **attrs)


def weight_shape(module: nn.Conv2d | nn.Linear) -> tuple[int, ...]:
    """Return the shape of a layer's weight, without computing the weight if it is parametrised."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def _lower_conv(node: fx.Node, x: fx.Node, module: nn.Conv2d) -> Node:
    _require_images(x)
    padding: Any = module.padding  # read at each call by torch, too
    reach = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding_mode != "zeros" or (padding == "same" and any(size % 2 for size in reach)):
        raise Unsupported(f"padding {padding!r} of the mode {module.padding_mode!r}")
    if isinstance(padding, str):
        padding = [size // 2 for size in reach] if padding == "same" else (0, 0)
    stride, padding, dilation = ((int(a), int(b)) for a, b in (module.stride, padding, module.dilation))
    window: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    return _build_layer_node("conv2d", node, x, bias=module.bias is not None, **window, groups=module.groups)


def _lower_linear(node: fx.Node, x: fx.Node, module: nn.Linear) -> Node:
    shape = shape_of(x)
    if shape is None or len(shape) < 2:
        raise Unsupported(f"reads {None if shape is None else tuple(shape)}, not examples x features")
    return _build_layer_node("linear", node, x, bias=module.bias is not None)


def _lower_batch_norm(node: fx.Node, x: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> Node:
    shape = shape_of(x)
    if not module.training:
        raise Unsupported("a batch norm in evaluation mode")
    if not module.affine or shape is None or len(shape) not in (2, 4):
        raise Unsupported("a batch norm without scale and shift, or over sequences")
    return _build_layer_node("batch_norm", node, x, eps=module.eps)


def _lower_layer_norm(node: fx.Node, x: fx.Node, module: nn.LayerNorm) -> Node:
    shape = shape_of(x)
    if shape is None or len(shape) < 2 or tuple(module.normalized_shape) != tuple(shape[-1:]):
        raise Unsupported("a layer norm over more than the last dimension")
    scale, shift = module.elementwise_affine, module.elementwise_affine and module.bias is not None
    return _build_layer_node("layer_norm", node, x, weight=scale, bias=shift, eps=module.eps)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _lower_avg_pool(
    node: fx.Node,
    x: fx.Node,
    /,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    *,
    divisor_override: int | None = None,
) -> Node:
    _require_images(x)
    size = _pair(kernel_size)
    if _pair(stride or size) != size or _pair(padding) != (0, 0) or ceil_mode or divisor_override:
        raise Unsupported("means of overlapping or padded windows")
    return native_node("avg_pool2d", (x.name,), node.name, kernel=size, stride=size)


def _lower_max_pool(
    node: fx.Node,
    x: fx.Node,
    /,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:
    if return_indices:
        raise Unsupported("positions of the largest values")
    _require_images(x)
    if _pair(dilation) != (1, 1):
        raise Unsupported("dilated windows")
    size, stride, padding = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    window: dict[str, Any] = {"kernel": size, "stride": stride, "padding": padding, "ceil": bool(ceil_mode)}
    return native_node("max_pool2d", (x.name,), node.name, **window)


def _lower_global_mean(node: fx.Node, x: fx.Node, /, output_size: Any = None) -> Node:
    _require_images(x)
    if output_size not in (1, (1, 1), [1, 1]):
        raise Unsupported("an adaptive pooling to more than one pixel")
    return native_node("global_avg_pool", (x.name,), node.name)


def _lower_flatten(node: fx.Node, x: fx.Node, /, start_dim: int = 0, end_dim: int = -1) -> None:
    before, after = shape_of(x), shape_of(node)
    plain = before is not None and tuple(before[2:]) in ((), (1, 1))
    if before is None or after is None or not plain or len(after) != 2 or before[:2] != after:
        raise Unsupported("another shape")


def _lower_dropout(node: fx.Node, x: fx.Node, /, p: float) -> None:
    if p:
        raise Unsupported("dropout")


def _lower_activation(act: str, node: fx.Node, x: fx.Node, /, inplace: bool = False) -> Node:
    return native_node("act", (x.name,), node.name, act=act)


def _lower_gelu(node: fx.Node, x: fx.Node, /, approximate: str = "none") -> Node:
    return _lower_activation({"none": "gelu", "tanh": "gelu_tanh"}[approximate], node, x)


def _lower_sum(node: fx.Node, one: fx.Node, other: Any, /) -> Node:
    if not isinstance(other, fx.Node):
        raise Unsupported("not a sum of two values")
    if shape_of(one) is None or shape_of(one) != shape_of(other) or len(shape_of(one) or ()) < 2:
        raise Unsupported("values of different shapes")
    return native_node("add", (one.name, other.name), node.name)


_ACTIVATIONS = {act: partial(_lower_activation, act) for act in ("relu", *SLOPES) if "gelu" not in act}

_MODULES: dict[type[nn.Module], Callable[..., Node | None]] = {
    nn.Conv2d: _lower_conv,
    nn.Linear: _lower_linear,
    nn.BatchNorm2d: _lower_batch_norm,
    nn.BatchNorm1d: _lower_batch_norm,
    nn.LayerNorm: _lower_layer_norm,
    **{kind: _ACTIVATIONS[name.lower()] for name, kind in vars(nn).items() if name.lower() in _ACTIVATIONS},
    nn.GELU: _lower_gelu,
    nn.MaxPool2d: _lower_max_pool,
    nn.AvgPool2d: _lower_avg_pool,
    nn.AdaptiveAvgPool2d: _lower_global_mean,
    nn.Flatten: _lower_flatten,
    nn.Identity: lambda node, x, /: None,
    nn.Dropout: _lower_dropout,
}
"""Class of modules -> function that converts a call: arguments are the call, its input, and settings of the module."""

_FUNCTIONS: dict[Any, Callable[..., Node | None]] = {
    **{getattr(F, act): lower for act, lower in _ACTIVATIONS.items() if hasattr(F, act)},
    **{getattr(torch, act): lower for act, lower in _ACTIVATIONS.items() if hasattr(torch, act)},
    **_ACTIVATIONS,
    F.gelu: _lower_gelu,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _lower_sum),
    **dict.fromkeys((torch.flatten, "flatten"), _lower_flatten),
    F.adaptive_avg_pool2d: _lower_global_mean,
    F.max_pool2d: _lower_max_pool,
    F.avg_pool2d: _lower_avg_pool,
}
"""Function, or name of a method -> function that converts a call, whose arguments follow the call."""


def module_class_without_wrappers(module: nn.Module) -> type[nn.Module]:
    """Return the torch class whose `forward` the module uses, if kernels support it; else the module's own class."""
    own = type(module)
    for base in own.__mro__:
        same = base in _MODULES and own.forward is base.forward
        if same and getattr(own, "_conv_forward", None) is getattr(base, "_conv_forward", None):
            return base
    return own


def lower_module(node: fx.Node, module: nn.Module) -> Node | None:
    """Return the node for a call of a module; None if the module returns its input unchanged."""
    lower = _MODULES.get(module_class_without_wrappers(module))
    if lower is None or len(node.all_input_nodes) != 1:
        raise Unsupported(f"no kernels for {type(module).__name__}")
    names = [*signature(lower).parameters][2:]
    settings = {name: module if name == "module" else getattr(module, name, None) for name in names}
    return lower(node, node.all_input_nodes[0], **settings)


def lower_function(node: fx.Node) -> Node | None:
    """Return the node for a call of a function or method; None if the call returns its input unchanged."""
    lower = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    if lower is None:
        raise Unsupported("no kernels")
    if not node.args or not isinstance(node.args[0], fx.Node):
        raise Unsupported("its first argument is not a tensor")
    try:
        given = signature(lower).bind(node, *node.args, **node.kwargs)
    except TypeError:
        raise Unsupported("unknown arguments") from None
    return lower(*given.args, **given.kwargs)


_DRAWING = re.compile(
    "drop|rand|bernoulli|multinomial|normal|uniform|exponential|gumbel|rrelu|poisson|cauchy|geometric"
)


def may_draw_random_numbers(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a node may draw random numbers; such nodes must run in the same order as in the model."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = module_class_without_wrappers(module) in _MODULES and not isinstance(module, nn.Dropout)
        return bool(module._forward_hooks or module._forward_pre_hooks) or not known
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    attends = "attention" in str(name) and ("dropout_p" in node.kwargs or len(node.args) > 4)
    return attends or bool(_DRAWING.search(str(name)))


def allowed_input_kinds(node: fx.Node, lowered: Node | None) -> set[bool]:
    """Return on which inputs kernels can run a node: True stands for tokens, False for images."""
    sizes = {len(shape_of(read) or ()) for read in node.all_input_nodes}
    if lowered is None and shape_of(node) != shape_of(node.all_input_nodes[0]):
        return {False}
    op = "" if lowered is None else lowered.op
    if op == "linear":
        return {False} if sizes == {2} else {True}
    if op == "layer_norm":
        return {True}
    if op not in ("", "act", "add"):
        return {False}
    return {True, False} if sizes <= {2, 4} else {True}
