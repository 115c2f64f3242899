"""The base of a latency budget: whose latency a share is of. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ticketry.choices import check_choice
from ticketry.core.costs.words import told

Base = Literal["eager", "torch.compile", "onnxruntime", "openvino", "engine"]
EAGER: Base = "eager"
ENGINE: Base = "engine"
BASES: tuple[str, ...] = get_args(Base)
"""The model as it runs in one of these, unpruned; ``engine`` is the model compiled by ticketry."""


def check_base(base: str) -> str:
    """Return the base; raise `UsageError` for an unknown one."""
    check_choice("base", base, BASES)
    return base


@dataclass(frozen=True)
class Latencies:
    """Seconds of one call, by which a budget is read; the first two were timed in turns.

    Examples:
        >>> from ticketry.core.costs.bases import Latencies
        >>> print(Latencies("eager", now=10.9e-3, unpruned=2.1e-3, requested=5.4e-3))
        now 10.9 ms (eager), compiled without pruning 2.1 ms, requested 5.4 ms: no pruning needed
        >>> print(Latencies("engine", now=2.1e-3, unpruned=2.1e-3, requested=1.05e-3))
        compiled without pruning 2.1 ms, requested 1.05 ms
    """

    base: str
    """One of `BASES`."""
    now: float
    """Latency of the base."""
    unpruned: float
    """Latency of the model compiled by ticketry without pruning."""
    requested: float

    @property
    def met_unpruned(self) -> bool:
        """Whether the model meets the budget as soon as it is compiled."""
        return self.requested >= self.unpruned

    def __str__(self) -> str:
        now = "" if self.base == ENGINE else f"now {told(self.now, 'seconds')} ({self.base}), "
        return (
            f"{now}compiled without pruning {told(self.unpruned, 'seconds')}, requested"
            f" {told(self.requested, 'seconds')}{': no pruning needed' if self.met_unpruned else ''}"
        )
