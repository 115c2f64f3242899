"""What every verb that trains takes: the store, the workers and the arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ticketry.errors import UsageError

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
    stack: int = 0
    """Train up to so many networks that differ in start, mask and seeds alone (replicates, controls) as one; 0: each
    alone. Helps very small networks; slows convolutions on a CPU down. Results are those of training alone within float
    error, not bit for bit, and are stored apart from these."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints inside a training."""
    json: bool = False
    """Print the result as one JSON object on standard output, and nothing else there."""


def opened(options: LabOptions, task: Task | None, on_event: OnEvent) -> Lab:
    """The lab that the options ask for; a task that cannot be made again by name is trained in this process."""
    from ticketry.lab.allocator import keep_freed_memory
    from ticketry.lab.lab import Lab, default_workers

    if options.device != "cuda":
        import torch

        torch.set_num_threads(1)  # this process only directs: its small work is slowed by threads, workers are not
    workers = default_workers() if options.workers is None else options.workers
    if task is not None and not task.spec:
        workers = 0
    if options.stack and not workers:
        raise UsageError(
            "--stack needs a worker process: leave --workers 0 away, and name a task of your own as module:object"
        )
    if not workers:
        keep_freed_memory()
    return Lab(
        options.store,
        data=options.data,
        workers=workers,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        stack=options.stack,
        checkpoint_seconds=options.checkpoint_seconds,
        on_event=on_event,
    )
