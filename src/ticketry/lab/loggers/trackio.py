"""Trackio: a run for each training, grouped by search or verification, on this machine or in a Space."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import needs
from ticketry.lab.loggers.logger import Logged, flat


class Trackio:
    """Runs of the project TRACKIO_PROJECT, or ticketry; in a Space where trackio is set to one (TRACKIO_SPACE_ID).

    Trackio has no kinds of runs: the kind is in the configuration, and in the name of a run, which names its group too.
    """

    def __init__(self, store: Path) -> None:
        needs("trackio", "trackio", "logging to trackio")
        self._project = os.environ.get("TRACKIO_PROJECT", "ticketry")
        self._runs: dict[str, Any] = {}
        self._there: dict[str, Any] | None = None
        """Runs of the project on this machine, by name."""

    def start(self, run: Logged) -> bool:
        import trackio

        if self._there is None:
            _quiet()
            self._there = self._found() if self._is_local() else {}
        name = run.group if run.whole else f"{run.group} {run.name}"
        if (known := self._there.pop(name, None)) is not None:
            if not run.whole:
                return False  # a training is told at once
            known.delete()  # told anew: its numbers come at its end, which it may not have had
        self._runs[run.id] = trackio.init(
            project=self._project,
            name=name,
            group=run.group,
            config={"kind": run.kind, **flat(run.config)},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        self._runs[run.id].log(dict(values), step=step)

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        import trackio

        made = trackio.Artifact(f"{kind}-{run.id}", type=kind, metadata={"path": str(path), "run": run.name})
        if path.is_dir():
            made.add_dir(path)
        else:
            made.add_file(path)
        self._runs[run.id].log_artifact(made)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        self._runs.pop(run.id).finish()

    def where(self) -> str:
        return f"trackio show --project {self._project}"

    def _found(self) -> dict[str, Any]:
        import trackio

        try:
            return {one.name: one for one in trackio.Api().runs(self._project)}
        except ValueError:  # there is no such project yet
            return {}

    def _is_local(self) -> bool:
        return not any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))


def _quiet() -> None:
    """Let trackio print nothing: what a command prints on standard output is its result, and may be JSON."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            vars(module)["print"] = lambda *_, **__: None
