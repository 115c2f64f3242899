"""What one training step costs."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.mask import Mask
from ticketry.core.score import Loss
from ticketry.core.ticket.state_dicts import load_state
from ticketry.errors import UsageError
from ticketry.lab.costs.meters.flops import step_flops
from ticketry.lab.costs.meters.memory import allocated_at_peak, resident_at_peak
from ticketry_engine.support.entry_points import Need, as_normal_tensors, callers_defaults, entry_point
from ticketry_engine.support.process_state import private_random_state

_Step = Callable[[], None]


@dataclass(frozen=True)
class StepCost:
    """Of one step: forward, backward, the optimiser's step.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss = lambda model, x: model(x).sum()
        >>> cost = tk.meters.measure_step(model, loss, torch.randn(8, 4), optimizer, repeats=1)
        >>> cost.device, cost.allocated > 0, cost.reserved
        ('cpu', True, None)
    """

    seconds: float
    """Median of the steps timed."""
    flops: float
    """Of the forward and the backward pass, if removed weights took none, see `meters.step_flops`."""
    dense_flops: int
    """As they are computed."""
    allocated: int
    """Bytes of tensors at the step's height, by torch's allocator on the device: weights, gradients, optimiser's state,
    batch and whatever is needed in between."""
    reserved: int | None
    """Bytes that the allocator held of the GPU's memory; None on a CPU."""
    resident: int | None
    """Bytes of the process in memory at the most, since it began; None where the system does not tell."""
    device: str


@entry_point(Need(python=False, training=True), autocast=True)
def measure_step(
    model: nn.Module, loss: Loss, batch: object, optimizer: Optimizer, *, mask: Mask | None = None, repeats: int = 10
) -> StepCost:
    """Measure a training step of a model, and leave model, optimiser, gradients and random state as they were.

    Args:
        model: where it is, in the mode that it is in.
        loss: ``loss(model, batch) -> scalar``.
        batch: whatever `loss` takes, on the model's device.
        optimizer: of the model's parameters.
        mask: counts its removed weights out of `StepCost.flops`; the step itself is the dense one, see `hold`.
        repeats: steps that are timed, after one that is not.

    Raises:
        UsageError: for less than one repeat, a mask that is none, or a model without parameters.
        MaskError: if the mask does not fit the model.

    Examples:
        >>> model = nn.Linear(4, 2, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss = lambda model, batch: model(batch).square().mean()
        >>> mask = tk.prune(model, density=0.25)
        >>> cost = tk.meters.measure_step(model, loss, torch.randn(8, 4), optimizer, mask=mask, repeats=3)
        >>> cost.dense_flops, cost.flops, cost.seconds > 0
        (256, 64.0, True)
    """
    if repeats < 1:
        raise UsageError(f"repeats is the number of steps timed, at least 1, not {repeats}")
    first = next(model.parameters(), None)
    if first is None:
        raise UsageError(f"{type(model).__name__} has no parameters, so there is no step to measure")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    device = first.device
    batch = as_normal_tensors(batch)
    with _restored(model, optimizer, device), callers_defaults():
        optimizer.zero_grad(set_to_none=True)
        flops = step_flops(model, lambda: loss(model, batch), mask)
        step()  # makes the optimiser's state
        seconds = statistics.median(_timed(step, device) for _ in range(repeats))
        optimizer.zero_grad(set_to_none=True)
        allocated, reserved = _peak(step, device, [model.state_dict(), batch, optimizer.state.values()])
    return StepCost(seconds, flops.sparse, flops.dense, allocated, reserved, resident_at_peak(), str(device))


def _timed(step: _Step, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(step: _Step, device: torch.device, held: list[object]) -> tuple[int, int | None]:
    """Bytes allocated and, on a GPU, reserved at the height of a step."""
    if device.type != "cuda":
        return allocated_at_peak(step, held), None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


@contextlib.contextmanager
def _restored(model: nn.Module, optimizer: Optimizer, device: torch.device) -> Iterator[None]:
    """Put back weights, buffers, gradients, optimiser's state, random state after a block. Copies wait on the CPU."""
    state = {name: _kept(value) for name, value in model.state_dict().items()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    before = _kept(optimizer.state_dict())
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with private_random_state([device] if device.type == "cuda" else []):
            yield
    finally:
        load_state(model, state)
        optimizer.load_state_dict(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _kept(inner) for name, inner in value.items()}
    return copy.deepcopy(value)
