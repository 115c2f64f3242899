"""TensorBoard: a folder of event files for each training, in a folder for each search or verification."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import needs
from ticketry.files import join_inside
from ticketry.lab.loggers.logger import Logged, flat

_DONE = "finished"
"""Marks the folder of a run that is told to its end."""


class TensorBoard:
    """Event files in the store's folder ``tensorboard``: scalars by step, settings as hyper-parameters.

    TensorBoard keeps no files: of an artifact it tells where it lies, and of a JSON file what is in it.
    """

    def __init__(self, store: Path) -> None:
        needs("tensorboard", "tensorboard", "logging to tensorboard")
        self._folder = store / "tensorboard"
        self._writers: dict[str, Any] = {}
        self._last: dict[str, dict[str, float]] = {}
        """The last value of each metric of a run."""

    def start(self, run: Logged) -> bool:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self._of(run)
        if (folder / _DONE).exists():
            return False
        for stale in folder.glob("events.out.tfevents.*"):  # of a run that was stopped
            stale.unlink()
        self._writers[run.id] = SummaryWriter(str(folder), max_queue=1000, flush_secs=30)
        self._last[run.id] = {}
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writers[run.id].add_scalar(name, value, step)
        self._last[run.id].update(values)

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        text = f"`{path}`"
        if path.suffix == ".json":
            text += f"\n\n```json\n{json.dumps(json.loads(path.read_text()), indent=1)}\n```"
        self._writers[run.id].add_text(kind, text)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        from torch.utils.tensorboard.summary import hparams

        writer, values = self._writers.pop(run.id), self._last.pop(run.id)
        config = {"kind": run.kind, **flat(run.config)}
        told = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in config.items()}
        summaries: Any = hparams  # has no types
        for summary in summaries(told, {name: value for name, value in values.items() if name.startswith("test/")}):
            writer.file_writer.add_summary(summary)
        writer.close()
        if not failed:
            (self._of(run) / _DONE).touch()

    def where(self) -> str:
        return f"tensorboard --logdir {self._folder}"

    def _of(self, run: Logged) -> Path:
        return join_inside(self._folder, _plain(run.group), "whole" if run.whole else _plain(run.name))


def _plain(name: str) -> str:
    """As the name of a folder: a label is a user's own text."""
    return re.sub(r"[^\w.=+-]+", "-", name)[:200].lstrip(".") or "-"
