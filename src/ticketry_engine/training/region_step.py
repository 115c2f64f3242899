"""A region as one node of autograd: forward in the kernels, its values kept in their layout, and backward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.bfloat import HALF
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.training.layout import IMAGES
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.first_derivative import first_derivative_only
from ticketry_engine.support.masked_gradients import mark_masked
from ticketry_engine.training.call import Call
from ticketry_engine.training.emission.region import planned
from ticketry_engine.training.gradient_memory import GradientMemory
from ticketry_engine.training.kept_weights import accumulate
from ticketry_engine.training.nodes import Region, Shape
from ticketry_engine.training.plan import Plan

TOKENS = 16
"""Of a row of a block, where there are so many."""

_PLANS = 8
"""For inputs of other shapes that are kept."""

_SHAPES = 256
"""Of inputs of which it is kept whether they fit."""

MOST_THREADS = 8
"""That share an operation: they wait for one another after each, and small ones have few parts."""


class RegionStep:
    """A region that is called with tensors, images x channels (x rows x columns), and gives images x channels x …

    Args:
        modules: of the model, by name.
        kept: of each convolution's module, which weights are kept.
        masks: the same as tensors of the mask that is held, where one is.
        rows: of modules whose kept weights are parameters of their own, these.
        half: whether it computes as under autocast to bfloat16: so are values and their gradients, those that it
            returns too, whatever comes in. Parameters and their gradients are float32, and so are sums and statistics.
    """

    def __init__(
        self,
        region: Region,
        modules: Mapping[str, nn.Module],
        kept: Mapping[str, Array],
        library: Library,
        masks: Mapping[str, Tensor] | None = None,
        rows: Mapping[str, nn.Parameter] | None = None,
        *,
        half: bool = False,
    ) -> None:
        self.region, self.masks, self.rows, self.half = region, masks or {}, rows or {}, half
        self._modules, self._kept, self._library = modules, kept, library
        self._plans: dict[Any, Plan] = {}
        self._fitting: dict[tuple[torch.Size, ...], bool] = {}
        """Shapes of inputs but for the number of images -> whether they fit."""
        self.seconds: dict[str, float] | None = None
        """Of operations by their labels, where they are asked for, see `Session.seconds`."""
        self._memory = GradientMemory()

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parameters = [getattr(self._modules[module], name) for module, name in self.region.parameters]
        for (module, name), parameter in zip(self.region.parameters, parameters, strict=True):
            _require(parameter, f"{module}.{name}")
        for tensor in inputs:
            _require(tensor, "an input", half=self.half)
        found: tuple[Tensor, ...] = _Function.apply(self, len(inputs), *inputs, *parameters)  # type: ignore[no-untyped-call]
        return found

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether the region does with inputs of these shapes what its graph does.

        A graph is of one shape, and its region is used for others: there the model may broadcast a sum, read pixels
        as features, or refuse what comes in.
        """
        if self.region.tokens:
            return len({tensor.shape[:-1] for tensor in inputs}) == 1
        shapes = tuple(tensor.shape[1:] for tensor in inputs)
        if shapes not in self._fitting:
            if len(self._fitting) >= _SHAPES:
                self._fitting.clear()
            self._fitting[shapes] = self._region_fits(inputs)
        return self._fitting[shapes] and len({len(tensor) for tensor in inputs}) == 1

    def _region_fits(self, inputs: Sequence[Tensor]) -> bool:
        try:
            self.region.shapes(dict(zip(self.region.inputs, map(_shape, inputs), strict=True)))
        except EngineError:
            return False
        return True

    def dense_parameters(self) -> Iterator[Tensor]:
        """Parameters that it reads as they are, and not as rows."""
        for module, name in self.region.parameters:
            if name != "weight" or module not in self.rows:
                yield getattr(self._modules[module], name)

    def named(self, parameters: Sequence[Tensor]) -> dict[tuple[str, str], Tensor]:
        """The region's parameters by module and name, rows in the place of weights that have one."""
        named = dict(zip(self.region.parameters, parameters, strict=True))
        return {key: self.rows.get(key[0], one) if key[1] == "weight" else one for key, one in named.items()}

    def given(self, module: str, made: Tensor, weight: Tensor) -> Tensor | None:
        """What autograd gets of a weight's gradient: none where a row has taken it."""
        if module in self.rows:
            if not _has_hooks(weight):
                accumulate(self.rows[module], made)
                return None
            # A whole one, which reaches the row when these hooks have seen it.
            made = weight.new_zeros(weight.shape).masked_scatter_(self.masks[module], made)
        if module in self.masks:
            mark_masked(made, self.masks[module])
        return made

    def plan(self, inputs: Sequence[Tensor], wanted: frozenset[str]) -> Plan:
        """The plan for inputs of these shapes, made when it is first needed."""
        tokens = self.region.tokens
        counts = [tensor[..., 0].numel() if tokens else len(tensor) for tensor in inputs]
        if len(set(counts)) > 1:
            raise EngineError(f"inputs of {counts} examples go into one layer")
        live, width = counts[0], 1
        if tokens:
            width = TOKENS if live >= IMAGES * TOKENS else 1
            live = -(-live // (IMAGES * width)) * IMAGES
        shapes = {
            name: (tensor.shape[-1], 1, width) if tokens else _shape(tensor)
            for name, tensor in zip(self.region.inputs, inputs, strict=True)
        }
        threads = min(torch.get_num_threads(), MOST_THREADS)
        key = live, wanted, threads, tuple(shapes.items())
        if key not in self._plans:
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            rows, item = frozenset(self.rows), HALF if self.half else FLOAT
            self._plans[key] = planned(
                self.region, shapes, self._kept, live, wanted, self._library, threads, rows, item
            )
        return self._plans[key]

    def begin(
        self, inputs: Sequence[Tensor], wanted: frozenset[str], parameters: Sequence[Tensor]
    ) -> tuple[Plan, Call]:
        """A step with its inputs in the kernels' layout."""
        plan = self.plan(inputs, wanted)
        call = Call(plan.program.session(plan.threads), self.named(parameters), self._modules, self._memory)
        call.session.seconds = self.seconds
        for name, tensor in zip(self.region.inputs, inputs, strict=True):
            plan.load(call, f"load {name}", _filled(tensor.detach().float(), plan, name))
        return plan, call


class _Function(torch.autograd.Function):
    """Takes the step, how many inputs there are, the inputs, the parameters."""

    @staticmethod
    def forward(ctx: Any, step: RegionStep, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[:count], tensors[count:]
        needed = ctx.needs_input_grad[2:]
        wanted = frozenset(name for name, need in zip(step.region.inputs, needed, strict=False) if need)
        plan, call = step.begin(inputs, wanted, parameters)
        plan.run("forward", call)
        lead = inputs[0].shape[:-1]
        made = tuple(
            plan.store(call, f"store {name}", (*lead, shape[0]) if step.region.tokens else (len(inputs[0]), *shape))
            for name, shape in ((name, plan.shapes[name]) for name in step.region.outputs)
        )
        if step.half:
            made = tuple(tensor.bfloat16() for tensor in made)
        if any(needed):
            call.wanted = frozenset(
                name for name, need in zip(step.region.parameters, needed[count:], strict=True) if need
            )
            ctx.save_for_backward(*parameters)
            ctx.step, ctx.plan, ctx.call = step, plan, call
            ctx.inputs = [(tensor.shape, tensor.dtype) for tensor in inputs]
        else:
            call.close()
        return made

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, call = ctx.plan, ctx.call
        call.require_open("a layer")
        # By way of autograd, which notices where a weight was changed in between. A checkpoint gives them once.
        saved = ctx.saved_tensors
        call.parameters = ctx.step.named(saved)
        for name, gradient in zip(plan.region.outputs, gradients, strict=True):
            plan.load(call, f"load gradient {name}", _filled(gradient.float(), plan, name))
        plan.run("backward", call)
        found: list[Tensor | None] = []
        for name, (shape, dtype) in zip(plan.region.inputs, ctx.inputs, strict=True):
            key = f"store gradient {name}"
            found.append(plan.store(call, key, shape).to(dtype) if key in plan.moves else None)
        weights = dict(zip(plan.region.parameters, saved, strict=True))
        for name in plan.region.parameters:
            # Not kept here, so that autograd need not copy it.
            made = call.gradients.pop(name, None) if name in call.wanted else None
            if made is not None and name[1] == "weight":
                made = ctx.step.given(name[0], made, weights[name])
            found.append(made)
        call.close()
        return None, None, *found


def _has_hooks(weight: Tensor) -> bool:
    """Return whether a hook other than that of mask enforcement reads or changes a weight's gradient."""
    hooks = (weight._backward_hooks or {}).values()
    return any(not getattr(getattr(hook, "__self__", None), "masks_gradients", False) for hook in hooks)


def _require(tensor: Tensor, what: str, *, half: bool = False) -> None:
    """Raises `EngineError` for a tensor that kernels cannot read."""
    known = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    if tensor.device.type != "cpu" or tensor.dtype not in known:
        raise EngineError(
            f"{what} is {tensor.dtype} on {tensor.device}: sparse training computes in float32 on the CPU, so leave the"
            " model there, and train without autocast, or with precision='bf16', which computes as autocast does"
        )


def _shape(tensor: Tensor) -> Shape:
    if tensor.dim() == 2:
        return int(tensor.shape[1]), 1, 1
    if tensor.dim() != 4:
        raise EngineError(f"an input of {tuple(tensor.shape)}: images x channels x rows x columns are needed")
    _, channels, height, width = tensor.shape
    return int(channels), int(height), int(width)


def _filled(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    """The tensor, contiguous, with images or tokens of zeros behind its own."""
    tensor = tensor.resolve_neg().contiguous()
    elements = plan.blocks * plan.images * math.prod(plan.shapes[name])
    if tensor.numel() == elements:
        return tensor
    filled = tensor.new_zeros(elements)
    filled[: tensor.numel()] = tensor.reshape(-1)
    return filled
