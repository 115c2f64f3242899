"""Weights & Biases: a run for each training, grouped by search or verification."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import needs
from ticketry.lab.loggers.logger import Logged


class Wandb:
    """Runs of the project WANDB_PROJECT, or ticketry; offline with WANDB_MODE=offline, as wandb has it.

    Trainings are of the group that their search or verification is, and their job type is their kind.
    """

    def __init__(self, store: Path) -> None:
        needs("wandb", "wandb", "logging to wandb")
        self._runs: dict[str, Any] = {}

    def start(self, run: Logged) -> bool:
        import wandb

        self._runs[run.id] = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ticketry"),
            group=run.group,
            name=run.name,
            job_type=run.kind,
            id=run.id,
            config=dict(run.config),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        self._runs[run.id].log(dict(values), step=step)

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        import wandb

        made = wandb.Artifact(f"{run.id}-{kind}", type=kind, metadata={"path": str(path), "run": run.name})
        if path.is_dir():
            made.add_dir(str(path))
        else:
            made.add_file(str(path))
        self._runs[run.id].log_artifact(made)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        self._runs.pop(run.id).finish(exit_code=int(failed))

    def where(self) -> str:
        if os.environ.get("WANDB_MODE") == "offline":
            return "wandb sync wandb/offline-run-*"
        return "https://wandb.ai, project " + os.environ.get("WANDB_PROJECT", "ticketry")
