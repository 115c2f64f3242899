"""What a whole training costs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ticketry.errors import UsageError
from ticketry.lab.costs.energy import POWERCAP, Energies, energies
from ticketry.lab.costs.meters.memory import resident_at_peak
from ticketry.lab.costs.meters.step import StepCost

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cost:
    """Of a whole training.

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
    """Of all steps, if removed weights took none; None if the step was not measured."""
    seconds: float
    """On the clock, everything in the block included."""
    peak_memory: int | None
    """Bytes: on a GPU those of torch's allocator at its height, else those of the process since it began; None where
    that is not told."""
    energy: float | None
    """kWh of the whole machine; None where it is not measured."""
    energy_source: str
    """The meters, or that it is an estimate and whose, or "not measured"."""


class Meter:
    """Measures whatever is trained in a block; `cost` tells when it has ended.

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
        """Nothing is measured before the block.

        Args:
            optimizer: its steps are counted; without one call `Meter.step`.
            step: what `measure_step` told, for `Cost.flops`. Of a mask that changes while training, tell `Meter.step`
                the FLOPs of each step.
            estimate: where the machine has no meter of energy, take codecarbon's model (extra ``energy``).
            powercap: where the kernel shows the processors' meters.
        """
        self._optimizer, self._flops = optimizer, step.flops if step else None
        self._estimate, self._powercap = estimate, powercap
        self._steps, self._told = 0, 0.0
        self._unknown = 0
        """Steps of whose FLOPs nothing is known."""
        self._handle: RemovableHandle | None = None
        self._energy: Energies | None = None
        self._began = 0.0
        self._cost: Cost | None = None

    def step(self, flops: float | None = None) -> None:
        """Count a step, of so many FLOPs or of those of the step that was measured."""
        flops = self._flops if flops is None else flops
        self._steps += 1
        self._unknown += flops is None
        self._told += flops or 0.0

    @property
    def cost(self) -> Cost:
        """What the block has cost; `UsageError` before it has ended."""
        if self._cost is None:
            raise UsageError("a meter tells the cost when its block has ended: `with Meter(optimizer) as meter: …`")
        return self._cost

    def __enter__(self) -> Meter:
        self._energy = energies("estimate" if self._estimate else "meter", self._powercap)
        if self._optimizer is not None:
            self._handle = self._optimizer.register_step_post_hook(lambda *_: self.step())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._steps, self._unknown, self._told = 0, 0, 0.0
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
            flops=None if self._unknown else self._told,
            seconds=seconds,
            peak_memory=torch.cuda.max_memory_allocated() if on_gpu else resident_at_peak(),
            energy=energy.kwh if energy else None,
            energy_source=energy.by if energy else NOT_MEASURED,
        )
