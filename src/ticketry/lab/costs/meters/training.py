"""Measure the cost of a whole training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ticketry.errors import UsageError
from ticketry.lab.costs.energy import POWERCAP, Energies, open_energy_meter
from ticketry.lab.costs.meters.memory import resident_at_peak
from ticketry.lab.costs.meters.step import StepCost

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cost:
    """Holds the cost of a whole training.

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
    """Peak bytes of tensors on the GPU; on a CPU, of the process since its start; None if unknown."""
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
        """Count a training step; `flops` are its FLOPs, by default those of the step given to the meter."""
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
