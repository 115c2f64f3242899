"""Measure time, memory, FLOPs and energy of one training step or of a whole training, in any training loop.

On a machine without a meter, energy is "not measured". On request, codecarbon then estimates the energy from a table of
typical powers; the result is labelled as an estimate.

>>> from ticketry.lab.costs.meters import Meter, measure_step
>>> step = measure_step(model, loss, batch, optimizer, mask=mask)  # doctest: +SKIP
>>> with Meter(optimizer, step=step) as meter:                     # doctest: +SKIP
...     train(model)
>>> meter.cost.energy, meter.cost.energy_source                    # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from ticketry.core.mask import Mask
from ticketry.core.score import Loss
from ticketry.core.ticket.state_dicts import load_state
from ticketry.errors import MissingExtraError, UsageError
from ticketry_engine.support.entry_points import Need, copy_inference_tensors, entry_point, restore_callers_defaults
from ticketry_engine.support.process_state import private_random_state

__all__ = [
    "NOT_MEASURED",
    "Cost",
    "FlopsByWeight",
    "Meter",
    "StepCost",
    "StepFlops",
    "allocated_at_peak",
    "flops_by_weight",
    "measure_step",
    "resident_at_peak",
    "step_flops",
]


# -- FLOPs -------------------------------------------------------------------------------------------------------------


_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
"""Operations whose result is a copy of a weight: dtype conversion by autocast, changes of the memory layout."""


@dataclass(frozen=True)
class StepFlops:
    """Holds the FLOPs of a forward and a backward pass; a multiplication and an addition are two FLOPs.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> flops = tk.meters.step_flops(model, lambda: model(x).sum(), mask=tk.prune(model, density=0.25))
        >>> flops.dense, flops.sparse
        (96, 24.0)
    """

    dense: int
    """All FLOPs, including products with removed weights."""
    sparse: float
    """FLOPs without the products with removed weights."""


@dataclass(frozen=True)
class FlopsByWeight:
    """Holds the FLOPs of a forward and a backward pass, in total and for the products with each parameter.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.products
        {('weight',): 96.0}
        >>> found.left({"weight": 0.5})
        48.0
    """

    dense: int
    """All FLOPs, including products with removed weights."""
    products: Mapping[tuple[str, ...], float]
    """FLOPs of products, forward and backward, by the names of the parameters in the product; mostly one name."""

    def left(self, removed: Mapping[str, float]) -> float:
        """Return the FLOPs of the network, without the products with removed weights.

        Args:
            removed: for each parameter, the share of its weights that is removed.
        """
        gone = (flops * max(removed.get(name, 0.0) for name in names) for names, flops in self.products.items())
        return self.dense - sum(gone)


@entry_point(Need(values=False, python=False, training=True), autocast=True)
def step_flops(model: nn.Module, forward: Callable[[], Tensor], mask: Mask | None = None) -> StepFlops:
    """Return the FLOPs of ``forward().backward()``, for the dense network and for the network with a mask.

    `torch.utils.flop_counter` counts matrix products, convolutions and attention; recurrent layers are counted too.
    Elementwise operations and the optimiser's step are not counted. Products with a masked parameter count in
    proportion to the weights that the mask retains, in the forward pass, for the input's gradient and for the weight's
    gradient (Evci et al. 2020, RigL, appendix H). The call leaves gradients in the parameters.

    Args:
        model: the model, which has the parameters of the mask.
        forward: function that returns the loss of a batch, a scalar.
        mask: the mask; by default the network is dense.

    Raises:
        UsageError: if `mask` is not a mask.
        MaskError: if the mask does not fit the model.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> tk.meters.step_flops(model, lambda: model(x).sum()).dense  # 3 * 4 * 2 products, forward and backward
        96
    """
    parameters = mask.parameters(model) if mask is not None else {}
    with restore_callers_defaults():
        found = flops_by_weight(parameters, forward)
    return StepFlops(found.dense, found.left(removed_shares(mask) if mask is not None else {}))


def removed_shares(mask: Mask) -> dict[str, float]:
    """Return, for each parameter of a mask, the share of weights that the mask removes."""
    return {name: 1 - int(kept.sum()) / max(kept.numel(), 1) for name, kept in mask.items()}


def flops_by_weight(parameters: Mapping[str, nn.Parameter], forward: Callable[[], Tensor]) -> FlopsByWeight:
    """Count the FLOPs of a forward and a backward pass, in total and for the products with each parameter.

    From the result, `FlopsByWeight.left` computes the FLOPs of the network with any mask.

    Args:
        parameters: parameters that may be masked, by name.
        forward: function that returns the loss of a batch, a scalar.

    Raises:
        UsageError: if no gradient reaches a parameter.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.dense, found.left({"weight": 0.75})
        (96, 24.0)
    """
    with _make_counter() as counter, _Products(parameters, counter.flop_registry) as products:
        loss = forward()
        if not loss.requires_grad:
            raise UsageError(
                "no gradient reaches a parameter from what forward() returns, so there is no backward pass to count:"
                " model.requires_grad_(True) trains frozen parameters, and forward() runs under torch.enable_grad()"
            )
        products.forward = False
        loss.backward()  # type: ignore[no-untyped-call]
    return FlopsByWeight(int(counter.get_total_flops()), dict(products.flops))


@torch.no_grad()
def forward_flops(parameters: Mapping[str, nn.Parameter], forward: Callable[[], object]) -> FlopsByWeight:
    """Return the FLOPs of a forward pass.

    `parameters` are the parameters that may be masked, by name; `forward` is a function that computes the forward pass.
    """
    with _make_counter() as counter, _Products(parameters, counter.flop_registry) as products:
        forward()
    return FlopsByWeight(int(counter.get_total_flops()), dict(products.flops))


def count_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of the matrix products, convolutions, attention and recurrent layers in a call of `work`."""
    with _make_counter() as counter:
        work()
    return int(counter.get_total_flops())


def _make_counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward_flops, **_RECURRENT}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward_flops(*shapes: Any, **_: Any) -> int:
    """Return the FLOPs of a convolution's backward pass; for grouped convolutions, torch 2.13 counts too many."""
    gradient, inputs, weight, *_rest = shapes
    transposed, asked = shapes[7], shapes[10]
    return 2 * int(prod(inputs if transposed else gradient) * prod(weight[1:])) * sum(map(bool, asked[:2]))


def _recurrent_flops(inputs: Any, *shapes: Any, **_: Any) -> int:
    """Return the FLOPs of a recurrent layer: a product with each weight matrix at every step of the sequence."""
    weights = shapes[0] if shapes and isinstance(shapes[0], list) else shapes[:4]
    return int(2 * prod(inputs[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2))


def _recurrent_backward_flops(*shapes: Any, **_: Any) -> int:
    return 2 * _recurrent_flops(*shapes)


_RECURRENT = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: _recurrent_backward_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
    torch.ops.aten._cudnn_rnn_backward: _recurrent_backward_flops,
}
"""Formulas for operations that compute a whole recurrent layer; on other devices torch uses single products."""


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up the FLOPs of the products with each weight; weights are recognised by memory address."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], formulas: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = formulas
        self._ranges: dict[int, list[tuple[int, int, str, bool]]] = {}
        self._alive: list[Tensor] = []
        """Copies of weights, which must not be freed, since another tensor could then get their memory address."""
        self.forward = True
        self.flops: dict[tuple[str, ...], float] = defaultdict(float)
        for name, parameter in parameters.items():
            self._register_weight(parameter, name, parameter.requires_grad)

    def _register_weight(self, tensor: Tensor, name: str, trained: bool) -> None:
        start = int(tensor.storage_offset())
        self._ranges.setdefault(_memory_address(tensor), []).append((start, start + tensor.numel(), name, trained))

    def _find_weight(self, tensor: Tensor) -> tuple[str, bool] | None:
        """Return the name of the weight whose memory `tensor` uses, and whether the weight is trained; else None."""
        at = int(tensor.storage_offset())
        for start, stop, name, trained in self._ranges.get(_memory_address(tensor), []):
            if start <= at < stop:
                return name, trained
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        seen = [(tensor, found) for tensor in _iterate_tensors(args) if (found := self._find_weight(tensor))]
        weights = [found for _, found in seen]
        if weights and func in _COPIES:
            self._register_weight(out, *weights[0])
            self._alive.append(out)
        packet = getattr(func, "_overloadpacket", None)
        if packet in _RECURRENT:
            rows = prod(args[0].shape[:-1]) * (1 if _RECURRENT[packet] is _recurrent_flops else 2)
            for tensor, (name, _) in seen:
                if tensor.dim() == 2:
                    self.flops[name,] += 2.0 * rows * tensor.numel()
        elif weights and packet in self._formulas:
            flops = self._formulas[packet](*args, **kwargs, out_val=out)
            # The backward pass of a convolution has the weight among its arguments and is counted there. The weight's
            # gradient of a matrix product is a product of two other tensors, with as many FLOPs.
            trained = any(trained for _, trained in weights)
            alone = self.forward and trained and torch.is_grad_enabled() and "conv" not in str(packet)
            self.flops[tuple(sorted({name for name, _ in weights}))] += flops * (2 if alone else 1)
        return out


def _iterate_tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
        elif isinstance(value, list | tuple):
            yield from _iterate_tensors(value)


def _memory_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# -- a training step ---------------------------------------------------------------------------------------------------


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
    batch = copy_inference_tensors(batch)
    with _restore_afterwards(model, optimizer, device), restore_callers_defaults():
        optimizer.zero_grad(set_to_none=True)
        flops = step_flops(model, lambda: loss(model, batch), mask)
        train_one_step()  # creates the optimiser's state
        seconds = statistics.median(_time_step(train_one_step, device) for _ in range(repeats))
        optimizer.zero_grad(set_to_none=True)
        allocated, reserved = 0, None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            train_one_step()
            torch.cuda.synchronize(device)
            allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        else:
            allocated = allocated_at_peak(train_one_step, [model.state_dict(), batch, optimizer.state.values()])
    return StepCost(seconds, flops.sparse, flops.dense, allocated, reserved, resident_at_peak(), str(device))


def _time_step(step: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    began = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


# -- energy and whole trainings ----------------------------------------------------------------------------------------


POWERCAP = Path("/sys/class/powercap")
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """Holds the energy that was used between two readings of the meters."""

    kwh: float
    """Energy in kWh."""
    by: str
    """Names of the meters and what they count, or the source of the estimate."""


class EnergyMeter:
    """Measures the machine's energy: the method `used` returns the energy since the object was created."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """Read the energy meters of processors (RAPL, in the folder `powercap`) and of GPUs for the first time."""
        self._domains = sorted(path for path in powercap.glob("intel-rapl*") if path.name.count(":") == 1)
        self._processors = self._read_processor_microjoules()
        self._gpus = _read_gpu_millijoules()

    @property
    def readable(self) -> bool:
        """Whether the machine has at least one meter that this process may read."""
        return self._processors is not None or self._gpus is not None

    def used(self) -> Energy | None:
        """Return the energy that the whole machine used since creation; None if no meter can be read."""
        joules, meters = 0.0, []
        now = self._read_processor_microjoules()
        if self._processors is not None and now is not None:
            meters.append("RAPL (whole processors)")
            for domain, before in self._processors.items():
                spent = now[domain] - before
                if spent < 0:  # the counter began again at 0
                    with contextlib.suppress(OSError, ValueError):
                        spent += float((domain / "max_energy_range_uj").read_text())
                joules += spent / 1e6
        gpus = _read_gpu_millijoules()
        if self._gpus is not None and gpus is not None:
            meters.append("NVML (all GPUs)")
            joules += (gpus - self._gpus) / 1e3
        if not meters:
            return None
        return Energy(joules / _JOULES_PER_KWH, f"{' and '.join(meters)}, other work on the machine included")

    def _read_processor_microjoules(self) -> dict[Path, float] | None:
        """Return the microjoules of each processor; None if there are no meters, or if only root may read them."""
        try:
            found = {domain: float((domain / "energy_uj").read_text()) for domain in self._domains}
        except (OSError, ValueError):
            return None
        return found or None


class EnergyEstimate:
    """Estimates the energy of the whole machine with codecarbon, from creation to the first call of `used`."""

    def __init__(self) -> None:
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            raise MissingExtraError("codecarbon", "energy", "estimating energy") from None
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", tracking_mode="machine"
        )
        self._tracker.start()

    def used(self) -> Energy | None:
        """Return the estimated energy; None if codecarbon gives no number."""
        self._tracker.stop()
        data = getattr(self._tracker, "final_emissions_data", None)
        kwh = getattr(data, "energy_consumed", None)
        if kwh is None:
            return None
        return Energy(float(kwh), "an estimate: codecarbon's model of typical powers, no meter")


Energies = EnergyMeter | EnergyEstimate


def open_energy_meter(kind: str = "meter", powercap: Path = POWERCAP) -> Energies:
    """Return the machine's energy meter; if it has none and `kind` is ``estimate``, return an `EnergyEstimate`."""
    if kind not in ("meter", "estimate"):
        raise UsageError(f"energy must be meter or estimate, got {kind!r}")
    meter = EnergyMeter(powercap)
    return EnergyEstimate() if kind == "estimate" and not meter.readable else meter


def _read_gpu_millijoules() -> float | None:
    """Return the millijoules of all GPUs since their drivers were loaded; None if NVML (nvidia-ml-py) is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return float(sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)) if handles else None
    except pynvml.NVMLError:
        return None


NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cost:
    """Holds the measured steps, FLOPs, time, memory and energy of a whole training.
    Examples:
        >>> with tk.meters.Meter() as meter:
        ...     for _ in range(3):
        ...         meter.step(flops=2e6)
        >>> cost = meter.cost
        >>> cost.steps, cost.flops, cost.seconds > 0
        (3, 6000000.0, True)
    """

    steps: int
    flops: float | None
    """FLOPs of all steps, without products with removed weights; None if the FLOPs of a step are unknown."""
    seconds: float
    """Wall time of the training."""
    peak_memory: int | None
    """Peak bytes of tensors on the GPU, or on a CPU the peak bytes of the process since its start; None if unknown."""
    energy: float | None
    """Energy that the whole machine used, in kWh; None if it was not measured."""
    energy_source: str
    """Names of the meters, or the source of the estimate, or "not measured"."""


class Meter:
    """Measures the cost of the training in a ``with`` block; `cost` is available when the block has ended.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tk.meters.Meter(optimizer) as meter:
        ...     for _ in range(3):
        ...         model(torch.randn(8, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> meter.cost.steps, meter.cost.seconds > 0
        (3, True)
        >>> with tk.meters.Meter() as meter:
        ...     meter.step(flops=1e6)
        >>> meter.cost.flops
        1000000.0
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        step: StepCost | None = None,
        estimate: bool = False,
        powercap: Path = POWERCAP,
    ) -> None:
        """Prepare a meter, which measures from the beginning of the ``with`` block.

        Args:
            optimizer: optimiser whose steps are counted. Without an optimiser, call `Meter.step` for each step.
            step: result of `measure_step`, from which `Cost.flops` is computed. If the mask changes during training,
                pass the FLOPs of each step to `Meter.step` instead.
            estimate: whether to estimate energy with codecarbon (extra ``energy``) if the machine has no meter.
            powercap: folder in which the kernel shows the meters of processors.
        """
        self._optimizer, self._flops = optimizer, step.flops if step else None
        self._estimate, self._powercap = estimate, powercap
        self._steps, self._sum = 0, 0.0
        self._unknown = 0
        """Number of steps with unknown FLOPs."""
        self._handle: RemovableHandle | None = None
        self._energy: Energies | None = None
        self._began = 0.0
        self._cost: Cost | None = None

    def step(self, flops: float | None = None) -> None:
        """Count a training step with `flops` FLOPs, by default the FLOPs of the meter's `step`."""
        flops = self._flops if flops is None else flops
        self._steps += 1
        self._unknown += flops is None
        self._sum += flops or 0.0

    @property
    def cost(self) -> Cost:
        """Cost of the training in the block; raises `UsageError` before the block has ended."""
        if self._cost is None:
            raise UsageError(
                "the cost of a meter is known when its block has ended: `with Meter(optimizer) as meter: …`"
            )
        return self._cost

    def __enter__(self) -> Meter:
        self._energy = open_energy_meter("estimate" if self._estimate else "meter", self._powercap)
        if self._optimizer is not None:
            self._handle = self._optimizer.register_step_post_hook(lambda *_: self.step())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._steps, self._unknown, self._sum = 0, 0, 0.0
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        if self._handle is not None:
            self._handle.remove()
        assert self._energy is not None
        energy = self._energy.used()
        self._cost = Cost(
            steps=self._steps,
            flops=None if self._unknown else self._sum,
            seconds=seconds,
            peak_memory=torch.cuda.max_memory_allocated() if on_gpu else resident_at_peak(),
            energy=energy.kwh if energy else None,
            energy_source=energy.by if energy else NOT_MEASURED,
        )
