"""Finds the regions of a model that the kernels know. What is left runs in torch at its place, with autograd.

The model is traced symbolically (`torch.fx`), its modules as wholes: parameters, hooks and buffers stay where they are.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from ticketry.engine.cpu.window import Array, Window
from ticketry.engine.training.nodes import Conv, Node, Norm, Pool, Region, Relu, Sum, fused
from ticketry.errors import CaptureError

LIMIT = 0.35
"""Above this density a layer is faster in torch. (At 0.35, a 3x3 convolution's step took 0.9 of a dense one's.)"""

SHORT = 64
"""Weights of a row, pruned ones too, up to which a layer takes part at any density: a stem, a depthwise convolution."""


@dataclass(frozen=True)
class Captured:
    """A model as steps: nodes of its graph that run in torch, and regions with the nodes that they stand for."""

    graph: fx.Graph
    order: list[fx.Node | Part]
    reasons: dict[str, str]
    """Layer that has weights -> why it runs in torch."""


@dataclass
class Part:
    """A region being found: nodes of the traced graph, and what they are for the kernels."""

    nodes: list[Node] = field(default_factory=list)
    members: dict[fx.Node, str] = field(default_factory=dict)
    """Node of the traced graph -> the value that it is in the region."""
    inputs: dict[fx.Node, str] = field(default_factory=dict)
    outputs: list[fx.Node] = field(default_factory=list)
    seeds: int = 0
    """Layers whose kernels gain by the mask."""

    def region(self) -> Region:
        """With what others read as outputs."""
        names = dict.fromkeys(self.members[node] for node in self.outputs)
        return fused(Region(tuple(self.inputs.values()), tuple(names), tuple(self.nodes)))


class _Unknown(Exception):
    """The reason why a node runs in torch."""


def capture(model: nn.Module, kept: Mapping[str, Array], example: tuple[Any, ...]) -> Captured:
    """The steps of a model.

    Args:
        kept: of each module under the mask, which weights are kept.
        example: arguments of the model.

    Raises:
        CaptureError: the model cannot be traced.
    """
    graph = traced(model, example)
    modules = dict(model.named_modules())
    finder = _Finder(modules, kept)
    for node in graph.nodes:
        finder.visit(node)
    return finder.captured(graph)


def traced(model: nn.Module, example: tuple[Any, ...]) -> fx.Graph:
    """The model's graph, each value with its shape for the example."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced, because its way depends on its data ({error}): put the part that"
            " decides into a module of its own, or train the mask densely under tk.hold"
        ) from error
    # A copy, whose statistics may move; the random numbers that it draws are put back.
    twin = fx.GraphModule(copy.deepcopy(model), graph)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        ShapeProp(twin).propagate(*example)
    return graph


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a value; None of what is no tensor."""
    found = getattr(node.meta.get("tensor_meta"), "shape", None)
    return found if isinstance(found, torch.Size) else None


class _Finder:
    def __init__(self, modules: Mapping[str, nn.Module], kept: Mapping[str, Array]) -> None:
        self.modules, self.kept = modules, kept
        self.parts: list[Part] = []
        self.of: dict[fx.Node, Part] = {}
        self.reasons: dict[str, str] = {}
        self.used: set[str] = set()
        """Modules that a region has: a second call of one runs in torch."""

    def visit(self, node: fx.Node) -> None:
        """Make a node part of a region, if the kernels know it."""
        try:
            made = self._lowered(node)
        except _Unknown as why:
            if node.op == "call_module":
                self.reasons[str(node.target)] = str(why)
            return
        seed = isinstance(made, Conv) and self._gains(made)
        starts = isinstance(made, Conv) and (seed or self._short(made))
        part = next((part for part in self._around(node) if self._may_join(node, part)), None)
        if isinstance(made, Conv) and not starts:
            self.reasons[made.module] = self._dense(made)
            return
        if part is None:
            if not starts:
                return
            part = Part()
            self.parts.append(part)
        self._join(node, made, part, seed)

    def _join(self, node: fx.Node, made: Node | None, part: Part, seed: bool) -> None:
        for read in node.all_input_nodes:
            if read not in part.members:
                part.inputs.setdefault(read, read.name)
        part.members[node] = node.name if made is not None else self._name(part, node.all_input_nodes[0])
        self.of[node] = part
        if made is not None:
            part.nodes.append(_renamed(made, lambda name: self._names(part)[name]))
        if isinstance(made, (Conv, Norm)):
            self.used.add(made.module)
        part.seeds += seed

    def _names(self, part: Part) -> dict[str, str]:
        return {node.name: name for node, name in (part.inputs | part.members).items()}

    @staticmethod
    def _name(part: Part, node: fx.Node) -> str:
        return part.members.get(node) or part.inputs[node]

    # -- which region ------------------------------------------------------------------------------------------------

    def _around(self, node: fx.Node) -> list[Part]:
        found = {id(self.of[read]): self.of[read] for read in node.all_input_nodes if read in self.of}
        return list(found.values())

    def _may_join(self, node: fx.Node, part: Part) -> bool:
        """Whether nothing that the node reads from elsewhere waits for the region."""
        return not any(self._waits(read, part) for read in node.all_input_nodes if self.of.get(read) is not part)

    def _waits(self, node: fx.Node, part: Part) -> bool:
        """Whether a value from outside a region needs it, directly or through others."""
        seen: set[int] = set()
        queue: list[fx.Node] = [node]
        while queue:
            one = queue.pop()
            whole = self.of.get(one)
            if whole is part:
                return True
            key = id(whole) if whole is not None else id(one)
            if key not in seen:
                seen.add(key)
                queue += list(whole.inputs) if whole is not None else one.all_input_nodes
        return False

    # -- which nodes -------------------------------------------------------------------------------------------------

    def _gains(self, conv: Conv) -> bool:
        kept = self.kept.get(conv.module)
        return kept is not None and float(kept.mean()) <= LIMIT

    def _short(self, conv: Conv) -> bool:
        return conv.inputs // conv.groups * conv.window.size[0] * conv.window.size[1] <= SHORT

    def _dense(self, conv: Conv) -> str:
        kept = self.kept.get(conv.module)
        if kept is None:
            return "not in the mask: faster dense"
        return f"density {float(kept.mean()):.2f}: above {LIMIT} faster dense"

    def _lowered(self, node: fx.Node) -> Node | None:
        """What a node is for the kernels; None: another name for its input.

        Raises:
            _Unknown: nothing.
        """
        read = list(node.all_input_nodes)
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if str(node.target) in self.used:
                raise _Unknown("called a second time")
            if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)):
                raise _Unknown("has hooks")
            lower = _MODULES.get(type(module))
            if lower is None or len(read) != 1:
                raise _Unknown(f"no kernels for {type(module).__name__}")
            return lower(node, read[0], module)
        function = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
        if function is None:
            raise _Unknown("no kernels")
        return function(node)

    def captured(self, graph: fx.Graph) -> Captured:
        """Steps in an order in which they can run."""
        for part in self.parts:
            if not part.seeds:
                for node in part.members:
                    del self.of[node]
                for made in part.nodes:
                    if isinstance(made, Conv):
                        self.reasons[made.module] = self._dense(made)
        for node in graph.nodes:
            for read in node.all_input_nodes:
                maker = self.of.get(read)
                if maker is not None and self.of.get(node) is not maker and read not in maker.outputs:
                    maker.outputs.append(read)
        order: list[fx.Node | Part] = []
        done: set[int] = set()

        def visit(step: fx.Node | Part) -> None:
            if id(step) in done:
                return
            done.add(id(step))
            for read in step.inputs if isinstance(step, Part) else step.all_input_nodes:
                visit(self.of.get(read, read))
            order.append(step)

        for node in graph.nodes:
            visit(self.of.get(node, node))
        return Captured(graph, order, self.reasons)


def _renamed(node: Node, name: Callable[[str], str]) -> Node:
    """The node with what it reads named as in its region."""
    if isinstance(node, Sum):
        return replace(node, x=name(node.x), other=name(node.other))
    return replace(node, x=name(node.x))


# -- modules and functions that kernels know ---------------------------------------------------------------------------


def _images(node: fx.Node) -> torch.Size:
    shape = shape_of(node)
    if shape is None or len(shape) != 4:
        raise _Unknown(f"reads {None if shape is None else tuple(shape)}, not images x channels x rows x columns")
    return shape


def _conv(node: fx.Node, x: fx.Node, module: nn.Conv2d) -> Node:
    _images(x)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise _Unknown(f"padding {module.padding!r} of the mode {module.padding_mode!r}")
    pairs = [(int(a), int(b)) for a, b in (module.kernel_size, module.stride, module.padding, module.dilation)]
    return Conv(
        x.name,
        node.name,
        str(node.target),
        module.in_channels,
        module.out_channels,
        Window(*pairs),
        module.groups,
        module.bias is not None,
    )


def _linear(node: fx.Node, x: fx.Node, module: nn.Linear) -> Node:
    shape = shape_of(x)
    if shape is None or len(shape) != 2:
        raise _Unknown(f"reads {None if shape is None else tuple(shape)}, not examples x features")
    bias = module.bias is not None
    return Conv(x.name, node.name, str(node.target), module.in_features, module.out_features, Window(), 1, bias)


def _norm(node: fx.Node, x: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> Node:
    shape = shape_of(x)
    if not module.affine or shape is None or len(shape) not in (2, 4):
        raise _Unknown("a batch norm without scale and shift, or over sequences")
    return Norm(x.name, node.name, str(node.target))


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _window(node: fx.Node, x: fx.Node, size: Any, stride: Any, padding: Any, largest: bool, other: bool) -> Node:
    _images(x)
    size = _pair(size)
    if _pair(size if stride is None or stride == () else stride) != size or _pair(padding) != (0, 0) or other:
        raise _Unknown("windows that do not lie side by side")
    return Pool(x.name, node.name, size, largest)


def _max_pool(node: fx.Node, x: fx.Node, m: nn.MaxPool2d) -> Node:
    other = m.dilation not in (1, (1, 1)) or m.ceil_mode or m.return_indices
    return _window(node, x, m.kernel_size, m.stride, m.padding, True, other)


def _avg_pool(node: fx.Node, x: fx.Node, m: nn.AvgPool2d) -> Node:
    return _window(node, x, m.kernel_size, m.stride, m.padding, False, bool(m.ceil_mode or m.divisor_override))


def _whole(node: fx.Node, x: fx.Node, size: Any) -> Node:
    _images(x)
    if size not in (1, (1, 1), [1, 1]):
        raise _Unknown("an adaptive pooling to more than one pixel")
    return Pool(x.name, node.name, None, False)


def _flat(node: fx.Node, x: fx.Node) -> None:
    """A view without pixels of a value that has one."""
    before, after = shape_of(x), shape_of(node)
    if before is None or after is None or len(after) != 2 or tuple(before[2:]) not in ((), (1, 1)):
        raise _Unknown("another shape")
    if tuple(before[:2]) != tuple(after):
        raise _Unknown("another shape")


def _nothing(node: fx.Node, x: fx.Node, module: nn.Module) -> None:
    return None


def _dropout(node: fx.Node, x: fx.Node, module: nn.Dropout) -> None:
    if module.p:
        raise _Unknown("dropout")


_MODULES: dict[type[nn.Module], Callable[[fx.Node, fx.Node, Any], Node | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm1d: _norm,
    nn.ReLU: lambda node, x, module: Relu(x.name, node.name),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda node, x, module: _whole(node, x, module.output_size),
    nn.Flatten: lambda node, x, module: _flat(node, x),
    nn.Identity: _nothing,
    nn.Dropout: _dropout,
}


def _arguments(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    """What a function is called with behind its first argument, by name.

    Raises:
        _Unknown: an argument that is not among these.
    """
    found = dict(defaults)
    if len(node.args) - 1 > len(defaults) or set(node.kwargs) - set(defaults):
        raise _Unknown("unknown arguments")
    found.update(zip(defaults, node.args[1:], strict=False))
    found.update(node.kwargs)
    return found


def _input(node: fx.Node) -> fx.Node:
    if not node.args or not isinstance(node.args[0], fx.Node):
        raise _Unknown("no tensor comes in")
    return node.args[0]


def _function_relu(node: fx.Node) -> Node:
    _arguments(node, inplace=False)
    return Relu(_input(node).name, node.name)


def _function_sum(node: fx.Node) -> Node:
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, fx.Node) for one in node.args):
        raise _Unknown("no sum of two values")
    one, other = node.args
    assert isinstance(one, fx.Node)
    assert isinstance(other, fx.Node)
    if shape_of(one) is None or shape_of(one) != shape_of(other) or len(shape_of(one) or ()) not in (2, 4):
        raise _Unknown("values of different shapes")
    return Sum(one.name, other.name, node.name)


def _function_flat(node: fx.Node) -> None:
    _flat(node, _input(node))


def _function_whole(node: fx.Node) -> Node:
    return _whole(node, _input(node), _arguments(node, output_size=None)["output_size"])


def _function_window(largest: bool) -> Callable[[fx.Node], Node]:
    def lowered(node: fx.Node) -> Node:
        a = _arguments(
            node, kernel_size=None, stride=None, padding=0, **({"dilation": 1} if largest else {}), ceil_mode=False
        )
        other = bool(a["ceil_mode"]) or a.get("dilation", 1) not in (1, (1, 1))
        return _window(node, _input(node), a["kernel_size"], a["stride"], a["padding"], largest, other)

    return lowered


_FUNCTIONS: dict[Any, Callable[[fx.Node], Node | None]] = {
    F.relu: _function_relu,
    torch.relu: _function_relu,
    "relu": _function_relu,
    operator.add: _function_sum,
    operator.iadd: _function_sum,
    torch.add: _function_sum,
    torch.flatten: _function_flat,
    "flatten": _function_flat,
    F.adaptive_avg_pool2d: _function_whole,
    F.max_pool2d: _function_window(True),
    F.avg_pool2d: _function_window(False),
}
"""Functions, and names of methods."""
