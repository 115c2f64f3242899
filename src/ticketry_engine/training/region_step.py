"""Runs a region as a single autograd function, whose forward and backward pass run in kernels."""

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
from ticketry_engine.kernels.training.layer import IMAGES
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.training_hooks import first_derivative_only, mark_masked
from ticketry_engine.training.emission import emit_region
from ticketry_engine.training.kept_weights import accumulate_gradient
from ticketry_engine.training.plan import GradientMemory, PlaneShape, RegionPass, TrainingPlan, TrainingRegion

TOKENS = 16
"""Number of tokens per row of a block, if there are enough tokens."""

_PLANS = 8
"""Maximum number of plans, for different input shapes, that a region keeps."""

_SHAPES = 256
"""Maximum number of input shapes for which the result of `accepts_inputs` is stored."""

MOST_THREADS = 8
"""Maximum number of threads that share an operation; threads wait for each other after every operation."""


class RegionStep:
    """Function that runs a region, a group of a model's nodes, in kernels.

    Its inputs are tensors [images, channels, ...], or [..., features] for a region over tokens.

    Args:
        modules: the model's modules, by name.
        kept: name of each convolution and linear layer -> bool array, True where a weight is retained.
        masks: name of a module whose mask is enforced -> bool tensor, True where a weight is retained.
        rows: name of a module -> the packed vector of its retained weights, if this vector is the parameter to train.
        half: whether to compute as under autocast to bfloat16. Values and their gradients, including the outputs, are
            then bfloat16; parameters and their gradients, sums and statistics are float32.
    """

    def __init__(
        self,
        region: TrainingRegion,
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
        self._plans: dict[Any, TrainingPlan] = {}
        self._fitting: dict[tuple[torch.Size, ...], bool] = {}
        """Shapes of the inputs, without the number of images -> whether they fit the region."""
        self.seconds: dict[str, float] | None = None
        """If not None, collects seconds by the label of operations: see `ProgramSession.seconds`."""
        self._memory = GradientMemory()
        parts = [name.rpartition(".") for name in region.parameters]
        self._sources = [(modules[module], module, attribute) for module, _, attribute in parts]
        """For each parameter: the module, the module's name, and the parameter's name in the module."""

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parameters = [getattr(module, attribute) for module, _, attribute in self._sources]
        for name, parameter in zip(self.region.parameters, parameters, strict=True):
            _require_readable(parameter, name)
        for tensor in inputs:
            _require_readable(tensor, "an input", half=self.half)
        apply = _RegionFunction.apply
        found: tuple[Tensor, ...] = apply(self, len(inputs), *inputs, *parameters)  # type: ignore[no-untyped-call]
        return found

    def accepts_inputs(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether the kernels compute the model's outputs for inputs of these shapes.

        With other shapes than those of the trace, the model may broadcast a sum, flatten pixels, or raise an error.
        """
        if self.region.tokens:
            return len({tensor.shape[:-1] for tensor in inputs}) == 1
        shapes = tuple(tensor.shape[1:] for tensor in inputs)
        if shapes not in self._fitting:
            if len(self._fitting) >= _SHAPES:
                self._fitting.clear()
            try:
                self.region.shapes(dict(zip(self.region.inputs, map(_shape, inputs), strict=True)))
                self._fitting[shapes] = True
            except EngineError:
                self._fitting[shapes] = False
        return self._fitting[shapes] and len({len(tensor) for tensor in inputs}) == 1

    def dense_parameters(self) -> Iterator[Tensor]:
        """Yield the dense parameters that the region reads, without weights that are trained as packed vectors."""
        for module, name, attribute in self._sources:
            if attribute != "weight" or name not in self.rows:
                yield getattr(module, attribute)

    def named_parameters(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the region's parameters by name; a weight that has a packed vector is replaced by the vector."""
        return {
            name: self.rows.get(module, parameter) if attribute == "weight" else parameter
            for name, (_, module, attribute), parameter in zip(
                self.region.parameters, self._sources, parameters, strict=True
            )
        }

    def deliver_weight_gradient(self, module: str, gradient: Tensor, weight: Tensor) -> Tensor | None:
        """Return a weight's gradient for autograd, or None after adding the gradient to the weight's packed vector."""
        if module in self.rows:
            if not _has_hooks(weight):
                accumulate_gradient(self.rows[module], gradient)
                return None
            # A dense gradient, which reaches the row after these hooks have seen it.
            gradient = weight.new_zeros(weight.shape).masked_scatter_(self.masks[module], gradient)
        if module in self.masks:
            mark_masked(gradient, self.masks[module])
        return gradient

    def plan_for_inputs(self, inputs: Sequence[Tensor], wanted: frozenset[str]) -> TrainingPlan:
        """Return the plan for inputs of these shapes and for gradients of the inputs `wanted`."""
        tokens = self.region.tokens
        counts = [tensor[..., 0].numel() if tokens else len(tensor) for tensor in inputs]
        if len(set(counts)) > 1:
            raise EngineError(f"inputs of one region have different numbers of examples: {counts}")
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
            plan = TrainingPlan(self.region, shapes, self._kept, live, wanted, self._library, threads, rows, item)
            emit_region(plan)
            self._plans[key] = plan
        return self._plans[key]


class _RegionFunction(torch.autograd.Function):
    """Autograd function that runs a group of nodes in kernels.

    Its arguments are a `RegionStep`, the number of inputs, the inputs, and the parameters.
    """

    @staticmethod
    def forward(ctx: Any, step: RegionStep, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[:count], tensors[count:]
        needed = ctx.needs_input_grad[2:]
        wanted = frozenset(name for name, need in zip(step.region.inputs, needed, strict=False) if need)
        plan = step.plan_for_inputs(inputs, wanted)
        session = plan.program.open_session(plan.threads)
        state = RegionPass(session, step.named_parameters(parameters), step._modules, step._memory)
        session.seconds = step.seconds
        for name, tensor in zip(step.region.inputs, inputs, strict=True):
            plan.run_tensor_copy(state, f"load {name}", _pad_to_blocks(tensor.detach().float(), plan, name))
        plan.run("forward", state)
        lead = inputs[0].shape[:-1]
        made = tuple(
            plan.copy_to_new_tensor(
                state, f"store {name}", (*lead, shape[0]) if step.region.tokens else (len(inputs[0]), *shape)
            )
            for name, shape in ((name, plan.shapes[name]) for name in step.region.outputs)
        )
        if step.half:
            made = tuple(tensor.bfloat16() for tensor in made)
        if any(needed):
            state.wanted = frozenset(
                name for name, need in zip(step.region.parameters, needed[count:], strict=True) if need
            )
            ctx.save_for_backward(*parameters)
            ctx.step, ctx.plan, ctx.state = step, plan, state
            ctx.inputs = [(tensor.shape, tensor.dtype) for tensor in inputs]
        else:
            state.close()
        return made

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, state, step = ctx.plan, ctx.state, ctx.step
        state.require_open("a layer")
        # Autograd notices if a saved weight was changed since. A checkpoint returns saved tensors only once.
        saved = ctx.saved_tensors
        state.parameters = step.named_parameters(saved)
        for name, gradient in zip(plan.region.outputs, gradients, strict=True):
            plan.run_tensor_copy(state, f"load gradient {name}", _pad_to_blocks(gradient.float(), plan, name))
        plan.run("backward", state)
        found: list[Tensor | None] = []
        for name, (shape, dtype) in zip(plan.region.inputs, ctx.inputs, strict=True):
            key = f"store gradient {name}"
            found.append(plan.copy_to_new_tensor(state, key, shape).to(dtype) if key in plan.moves else None)
        for name, (_, module, attribute), weight in zip(plan.region.parameters, step._sources, saved, strict=True):
            # Removed from the state, so that autograd need not copy it.
            parameter = state.gradients.pop(name, None) if name in state.wanted else None
            if parameter is not None and attribute == "weight":
                parameter = step.deliver_weight_gradient(module, parameter, weight)
            found.append(parameter)
        state.close()
        return None, None, *found


def _has_hooks(weight: Tensor) -> bool:
    """Return whether a weight has a hook on its gradient, apart from the hook that enforces the mask."""
    hooks = (weight._backward_hooks or {}).values()
    return any(not getattr(getattr(hook, "__self__", None), "masks_gradients", False) for hook in hooks)


def _require_readable(tensor: Tensor, what: str, *, half: bool = False) -> None:
    """Raise EngineError, which names the tensor `what`, if kernels cannot read a tensor."""
    known = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    if tensor.device.type != "cpu" or tensor.dtype not in known:
        raise EngineError(
            f"{what} is {tensor.dtype} on {tensor.device}: sparse training computes in float32 on the CPU, so leave the"
            " model there, and train without autocast, or with precision='bf16', which computes as autocast does"
        )


def _shape(tensor: Tensor) -> PlaneShape:
    if tensor.dim() == 2:
        return int(tensor.shape[1]), 1, 1
    if tensor.dim() != 4:
        raise EngineError(f"an input of {tuple(tensor.shape)}: images x channels x rows x columns are needed")
    _, channels, height, width = tensor.shape
    return int(channels), int(height), int(width)


def _pad_to_blocks(tensor: Tensor, plan: TrainingPlan, name: str) -> Tensor:
    """Return `tensor`, contiguous and padded with zeros to whole blocks of images or tokens."""
    tensor = tensor.resolve_neg().contiguous()
    elements = plan.blocks * plan.images * math.prod(plan.shapes[name])
    if tensor.numel() == elements:
        return tensor
    padded = tensor.new_zeros(elements)
    padded[: tensor.numel()] = tensor.reshape(-1)
    return padded
