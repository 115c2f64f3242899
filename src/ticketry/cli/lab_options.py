"""What every verb that trains takes: the store, the workers and the arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.lab.runner import OnEvent
    from ticketry.tasks.base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabOptions:
    """Options of a lab."""

    store: Path = Path(".ticketry")
    """Folder in which everything trained is kept."""
    data: Path | None = None
    """Folder in which data sets are looked for first."""
    workers: int | None = None
    """Local processes, one network each; by default one a core; 0 trains in this one."""
    device: str = "auto"
    """cpu, cuda or auto."""
    precision: str = "auto"
    """fp32, bf16 or auto: bf16 for convolutional networks on processors that have it."""
    threads: int = 1
    """CPU threads of one training; part of what decides its bits."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints inside a training."""
    json: bool = False
    """Print the result as one JSON object on standard output, and nothing else there."""


def opened(options: LabOptions, task: Task | None, on_event: OnEvent) -> Lab:
    """The lab that the options ask for; a task that cannot be made again by name is trained in this process."""
    from ticketry.lab.lab import Lab, default_workers

    if options.device != "cuda":
        import torch

        torch.set_num_threads(1)  # this process only directs: its small work is slowed by threads, workers are not
    workers = default_workers() if options.workers is None else options.workers
    return Lab(
        options.store,
        data=options.data,
        workers=workers if task is None or task.spec else 0,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        checkpoint_seconds=options.checkpoint_seconds,
        on_event=on_event,
    )
