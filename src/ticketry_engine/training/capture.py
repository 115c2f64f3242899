"""Finds the regions of a model that the kernels know. What is left runs in torch at its place, with autograd.

The model is traced symbolically (`torch.fx`), its modules as wholes: parameters, hooks and buffers stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx, nn

from ticketry_engine.kernels.bfloat import FLOAT, HALF
from ticketry_engine.kernels.training.layout import images_of
from ticketry_engine.kernels.window import Array
from ticketry_engine.training.lowering import (
    Unknown,
    draws,
    layouts,
    lowered_function,
    lowered_module,
    shape_of,
)
from ticketry_engine.training.nodes import Act, Conv, LayerNorm, Node, Norm, Region, Sum, fused

LIMIT = 0.5
"""Above this density a layer runs in torch, or with all its weights."""

LIMITS = {"avx512": 0.7}
"""The same for convolutions of more than a pixel, on processors on which it was measured, where blocks are full.

Four 3x3 convolutions in a row with norms and ReLUs, of 16 to 512 channels, took 0.83 to 0.95 of the time of those with
all weights at 70 %, no more than in torch, and 0.93 to 1.03 at 80 %. 1x1 convolutions of 1,024 channels took 1.25 at
70 %, of 256 channels 0.91."""

DENSE = 4
"""Dense convolutions of a region from which on it pays by what is around them alone. With 32 registers they take 0.5 to
1.1 of torch's time, about as much where planes are large; norms, ReLUs and sums beside them take a third (AVX-512)."""

FULL = 1.15
"""Images of whole blocks / those that there are, up to which dense convolutions take part."""

LIMIT_LINEAR = 0.3
"""The same for a linear layer, whose dense products are faster."""

SHORT = 64
"""Weights of a row, pruned ones too, up to which a layer takes part at any density: a stem, a depthwise convolution."""


ALONE = 1 << 17
"""Pruned weights of linear layers from which on they run in kernels without a convolution beside them.

With fewer, what a step costs at any size is more than their products. 784-300-100-10 (266,200 weights), batch 128, took
1.03, 0.90, 0.74 and 0.75 of the dense step's time with 30, 20, 10 and 5 % of its weights, and 1.17 to 1.19 in torch,
where a mask is held (AVX-512, a busy machine); 3072-4096-4096-10 took 1.0, 0.75, 0.35 with 50, 30, 10 % (AVX2)."""


@dataclass(frozen=True)
class Captured:
    """A model as steps: nodes of its graph that run in torch, and regions with the nodes that they stand for."""

    graph: fx.Graph
    order: list[fx.Node | Part]
    reasons: dict[str, str]
    """Layer that has weights -> why it runs in torch."""
    dense: set[str]
    """Layers in regions whose pruned weights take part as zeros."""


@dataclass
class Part:
    """A region being found: nodes of the traced graph, and what they are for the kernels."""

    tokens: bool = False
    nodes: list[Node] = field(default_factory=list)
    members: dict[fx.Node, str] = field(default_factory=dict)
    """Node of the traced graph -> the value that it is in the region."""
    inputs: dict[fx.Node, str] = field(default_factory=dict)
    outputs: list[fx.Node] = field(default_factory=list)
    seeds: int = 0
    """Layers whose kernels gain by the mask: convolutions, and linear layers over tokens."""
    pruned: int = 0
    """Weights that other linear layers are spared, see `ALONE`."""
    dense: set[str] = field(default_factory=set)
    """Convolutions with all their weights, see `DENSE`."""

    @property
    def pays(self) -> bool:
        """Whether it is faster than its layers in torch."""
        return self.seeds > 0 or self.pruned >= ALONE or len(self.dense) >= DENSE

    def region(self) -> Region:
        """With what others read as outputs."""
        names = dict.fromkeys(self.members[node] for node in self.outputs)
        values = () if self.tokens else (self.inputs | self.members).items()
        flat = frozenset(name for node, name in values if len(shape_of(node) or ()) == 2)
        return fused(Region(tuple(self.inputs.values()), tuple(names), tuple(self.nodes), self.tokens, flat))


def capture(
    model: nn.Module,
    kept: Mapping[str, Array],
    graph: fx.Graph,
    *,
    dense: bool = False,
    limit: float = LIMIT,
    half: bool = False,
) -> Captured:
    """The steps of a model.

    Args:
        kept: of each module under the mask, which weights are kept.
        graph: of a call of it, see `tracing`.
        dense: whether kernels are fast enough for convolutions with all their weights.
        limit: of the density of convolutions in sparse kernels where blocks are full, see `LIMITS`.
        half: whether it is for kernels in bfloat16.
    """
    modules = dict(model.named_modules())
    finder = _Finder(modules, kept, dense, limit, half)
    random = [node for node in graph.nodes if draws(node, modules)]
    finder.after = dict(zip(random[1:], random, strict=False))
    for node in graph.nodes:
        finder.visit(node)
    return finder.captured(graph)


class _Finder:
    def __init__(
        self, modules: Mapping[str, nn.Module], kept: Mapping[str, Array], dense: bool, limit: float, half: bool
    ) -> None:
        self.modules, self.kept, self.dense, self.limit, self.half = modules, kept, dense, limit, half
        self.parts: list[Part] = []
        self.of: dict[fx.Node, Part] = {}
        self.reasons: dict[str, str] = {}
        self.used: set[str] = set()
        """Modules that a region has: a second call of one runs in torch."""
        self.free: dict[fx.Node, Node] = {}
        """Nodes that kernels know, and that a region may begin with."""
        self.after: dict[fx.Node, fx.Node] = {}
        """Node that draws random numbers -> the one that draws before it."""

    def visit(self, node: fx.Node) -> None:
        """Make a node part of a region, if the kernels know it."""
        try:
            made = self._lowered(node)
        except Unknown as why:
            if node.op == "call_module":
                self.reasons[str(node.target)] = str(why)
            return
        gains = isinstance(made, Conv) and self._gains(node, made)
        short = isinstance(made, Conv) and (gains or self._short(made))
        dense = isinstance(made, Conv) and not short and self._takes_all(node, made)
        starts = short or dense
        linear = node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Linear)
        layout = layouts(node, made, linear=linear)
        if self.half and layout == {True}:
            if isinstance(made, Conv):
                self.reasons[made.module] = "over tokens: no kernels in bfloat16"
            return
        layout -= {True} if self.half else set()
        around = [part for part in self._around(node) if part.tokens in layout]
        part = next((part for part in around if self._may_join(node, part)), None)
        if isinstance(made, Conv) and not starts:
            self.reasons[made.module] = self._dense(node, made)
            return
        if part is None:
            if not starts:
                if isinstance(made, (Act, LayerNorm)) and True in layout:
                    self.free[node] = made
                return
            part = Part(tokens=True in layout)
            self.parts.append(part)
            if part.tokens:
                self._begin(part, node.all_input_nodes[0])
        self._join(node, made, part)
        if isinstance(made, Conv) and dense:
            part.dense.add(made.module)
        if isinstance(made, Conv) and gains:
            if isinstance(self.modules[made.module], nn.Linear) and not part.tokens:
                part.pruned += int((~self.kept[made.module]).sum())
            else:
                part.seeds += 1

    def _begin(self, part: Part, read: fx.Node) -> None:
        """Let a region begin with what lies before its first layer."""
        if read in self.free:
            self._begin(part, read.all_input_nodes[0])
            self._join(read, self.free.pop(read), part)

    def _join(self, node: fx.Node, made: Node | None, part: Part) -> None:
        for read in node.all_input_nodes:
            if read not in part.members:
                part.inputs.setdefault(read, read.name)
        part.members[node] = node.name if made is not None else self._name(part, node.all_input_nodes[0])
        self.of[node] = part
        if made is not None:
            part.nodes.append(_renamed(made, lambda name: self._names(part)[name]))
        if isinstance(made, (Conv, Norm, LayerNorm)):
            self.used.add(made.module)

    def _names(self, part: Part) -> dict[str, str]:
        return {node.name: name for node, name in (part.inputs | part.members).items()}

    @staticmethod
    def _name(part: Part, node: fx.Node) -> str:
        return part.members.get(node) or part.inputs[node]

    # -- which region ------------------------------------------------------------------------------------------------

    def _around(self, node: fx.Node) -> list[Part]:
        """Regions that make what a node reads; then those of tokens that read the same: queries, keys and values."""
        found = {id(self.of[read]): self.of[read] for read in node.all_input_nodes if read in self.of}
        for part in self.parts:
            if part.tokens and any(read in part.inputs for read in node.all_input_nodes):
                found.setdefault(id(part), part)
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
                queue += list(whole.inputs) if whole is not None else self._before(one)
        return False

    def _before(self, node: fx.Node) -> list[fx.Node]:
        """What runs before a node in torch."""
        return [*node.all_input_nodes, *(self.after[node] for _ in range(node in self.after))]

    # -- which nodes -------------------------------------------------------------------------------------------------

    def _gains(self, node: fx.Node, conv: Conv) -> bool:
        kept = self.kept.get(conv.module)
        return kept is not None and float(kept.mean()) <= self._limit(node, conv)

    def _limit(self, node: fx.Node, conv: Conv) -> float:
        """The density from which on a layer is faster dense."""
        if isinstance(self.modules[conv.module], nn.Linear):
            return LIMIT_LINEAR
        return self.limit if full(_images(node), half=self.half) and conv.window.size != (1, 1) else LIMIT

    def _short(self, conv: Conv) -> bool:
        return conv.inputs // conv.groups * conv.window.size[0] * conv.window.size[1] <= SHORT

    def _takes_all(self, node: fx.Node, conv: Conv) -> bool:
        """Whether kernels do all of a convolution as fast as torch: where blocks of images are nearly full."""
        return self.dense and conv.groups == 1 and full(_images(node), half=self.half)

    def _dense(self, node: fx.Node, conv: Conv) -> str:
        kept = self.kept.get(conv.module)
        if kept is None:
            return "not in the mask: faster dense"
        if self._gains(node, conv):
            return "small linear layers without a convolution: faster dense"
        return f"density {float(kept.mean()):.2f}: above {self._limit(node, conv)} faster dense"

    def _lowered(self, node: fx.Node) -> Node | None:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if str(node.target) in self.used:
                raise Unknown("called a second time")
            if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)):
                raise Unknown("has hooks")
            return lowered_module(node, module)
        return lowered_function(node)

    def captured(self, graph: fx.Graph) -> Captured:
        """Steps in an order in which they can run."""
        for part in self.parts:
            if not part.pays:
                named = {node.name: node for node in part.members}
                for node in part.members:
                    del self.of[node]
                for made in part.nodes:
                    if isinstance(made, Conv):
                        self.reasons[made.module] = self._dense(named[made.y], made)
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
            for read in step.inputs if isinstance(step, Part) else self._before(step):
                visit(self.of.get(read, read))
            order.append(step)

        for node in graph.nodes:
            visit(self.of.get(node, node))
        dense = {name for part in self.parts if part.pays for name in part.dense}
        return Captured(graph, order, self.reasons, dense)


def _images(node: fx.Node) -> int:
    """Of a value: images x channels x rows x columns."""
    shape = shape_of(node)
    return 0 if shape is None or len(shape) != 4 else int(shape[0])


def full(images: int, *, half: bool = False) -> bool:
    """Whether a batch fills whole blocks of images, but for a few, see `FULL`. Those in bfloat16 have more."""
    block = images_of(HALF if half else FLOAT)
    return 0 < -(-images // block) * block <= FULL * images


def _renamed(node: Node, name: Callable[[str], str]) -> Node:
    """The node with what it reads named as in its region."""
    if isinstance(node, Sum):
        return replace(node, x=name(node.x), other=name(node.other))
    return replace(node, x=name(node.x))
