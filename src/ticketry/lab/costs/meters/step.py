"""Measure the time, FLOPs and memory of one training step."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from ticketry_engine.support.entry_points import Need, as_normal_tensors, callers_defaults, entry_point
from ticketry_engine.support.process_state import private_random_state


def resident_at_peak() -> int | None:
    """Return the maximum bytes of memory that this process has used since its start; None if not reported.

    Examples:
        >>> peak = tk.meters.resident_at_peak()
        >>> peak is None or peak > 10_000_000
        True
    """
    try:
        import resource
    except ImportError:  # not on this system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def allocated_at_peak(work: Callable[[], object], held: Iterable[object]) -> int:
    """Return the peak bytes of CPU tensors during a call of `work`: the tensors `held`, plus newly allocated tensors.

    Args:
        work: function that is measured, such as a training step.
        held: tensors that exist before the call, in nested lists, tuples and mappings; shared memory counts once.

    Examples:
        >>> held = torch.zeros(1000)  # 4,000 bytes
        >>> tk.meters.allocated_at_peak(lambda: torch.ones(1000) + held, [held])
        12000
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # otherwise the profiler writes to standard error
    before, cpu = tensor_bytes(held), [torch.profiler.ProfilerActivity.CPU]
    with _without_garbage_collection(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        work()
    results: Any = profile.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    height = now = 0
    for _, change in changes:
        now += change
        height = max(height, now)
    return before + height


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Within a ``with`` block, disable garbage collection, so that no older tensors are freed during a measurement."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_bytes(work: Callable[[], object], held: Iterable[object], device: str) -> int:
    """Return the peak bytes of tensors on `device` during a call of `work`.

    `held` are tensors that exist before the call, and are included.
    """
    if not device.startswith("cuda"):
        return allocated_at_peak(work, held)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    own = tensor_bytes(held)
    work()
    torch.cuda.synchronize()
    return own + torch.cuda.max_memory_allocated() - before


def tensor_bytes(values: object) -> int:
    """Return the bytes of memory of all tensors in nested `values`; memory that tensors share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_in(values: object) -> Iterator[Tensor]:
    """Yield all tensors in nested lists, tuples, mappings and other iterables."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, Iterable) and not isinstance(values, str | bytes):
        for value in values:
            yield from tensors_in(value)


# -- a step ------------------------------------------------------------------------------------------------------------


_Step = Callable[[], None]


@dataclass(frozen=True)
class StepCost:
    """Holds the cost of one training step: forward pass, backward pass, and the optimiser's step.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss = lambda model, x: model(x).sum()
        >>> cost = tk.meters.measure_step(model, loss, torch.randn(8, 4), optimizer, repeats=1)
        >>> cost.device, cost.allocated > 0, cost.reserved
        ('cpu', True, None)
    """

    seconds: float
    """Seconds of a step; the median of the timed steps."""
    flops: float
    """FLOPs of the forward and the backward pass without products with removed weights, see `meters.step_flops`."""
    dense_flops: int
    """FLOPs of the forward and the backward pass, including products with removed weights."""
    allocated: int
    """Peak bytes of tensors on the device: weights, gradients, optimiser's state, batch and intermediate results."""
    reserved: int | None
    """Peak bytes of GPU memory that torch's allocator has reserved; None on a CPU."""
    resident: int | None
    """Maximum bytes of memory that the process has used since its start; None if the system does not report them."""
    device: str


@entry_point(Need(python=False, training=True), autocast=True)
def measure_step(
    model: nn.Module, loss: Loss, batch: object, optimizer: Optimizer, *, mask: Mask | None = None, repeats: int = 10
) -> StepCost:
    """Measure a training step of a model; afterwards restore model, optimiser, gradients and random state.

    Args:
        model: the model, on the device and in the mode (training or evaluation) in which it is measured.
        loss: function ``loss(model, batch)`` that returns a scalar.
        batch: second argument of `loss`, on the model's device.
        optimizer: optimiser of the model's parameters.
        mask: mask whose removed weights do not count in `StepCost.flops`. The measured step is dense.
        repeats: number of timed steps; a further step before them is not timed.

    Raises:
        UsageError: if `repeats` is less than 1, if `mask` is not a mask, or if the model has no parameters.
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
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    first = next(model.parameters(), None)
    if first is None:
        raise UsageError(f"{type(model).__name__} has no parameters, so there is no step to measure")

    def train_one_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    device = first.device
    batch = as_normal_tensors(batch)
    with _restore_afterwards(model, optimizer, device), callers_defaults():
        optimizer.zero_grad(set_to_none=True)
        flops = step_flops(model, lambda: loss(model, batch), mask)
        train_one_step()  # creates the optimiser's state
        seconds = statistics.median(_time_step(train_one_step, device) for _ in range(repeats))
        optimizer.zero_grad(set_to_none=True)
        allocated, reserved = _measure_peak(
            train_one_step, device, [model.state_dict(), batch, optimizer.state.values()]
        )
    return StepCost(seconds, flops.sparse, flops.dense, allocated, reserved, resident_at_peak(), str(device))


def _time_step(step: _Step, device: torch.device) -> float:
    _synchronize(device)
    began = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_peak(step: _Step, device: torch.device, held: list[object]) -> tuple[int, int | None]:
    """Return the peak bytes of tensors during a step, and the peak bytes of GPU memory that torch reserved.

    `held` are tensors that exist before the step, and are included. On the CPU, the second number is None.
    """
    if device.type != "cuda":
        return allocated_at_peak(step, held), None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _synchronize(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


@contextlib.contextmanager
def _restore_afterwards(model: nn.Module, optimizer: Optimizer, device: torch.device) -> Iterator[None]:
    """After a ``with`` block, restore weights, buffers, gradients, the optimiser's state and the random state."""
    state = {name: _copy_to_cpu(value) for name, value in model.state_dict().items()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    before = _copy_to_cpu(optimizer.state_dict())
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


def _copy_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy_to_cpu(inner) for name, inner in value.items()}
    return copy.deepcopy(value)
