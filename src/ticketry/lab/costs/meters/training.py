"""Measure the cost of a whole training, with energy from the meters of processors (RAPL) and GPUs (NVML).

On a machine without a meter, energy is "not measured". On request, codecarbon then estimates the energy from a table of
typical powers; the result is labelled as an estimate.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ticketry.errors import MissingExtraError, UsageError
from ticketry.lab.costs.meters.step import StepCost, resident_at_peak

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
