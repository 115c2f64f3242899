"""MLflow: a run for each training, nested in the run of its search or verification."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import needs
from ticketry.lab.loggers.logger import Logged, flat

_ID = "ticketry.id"
_BATCH = 100
"""As many parameters, and 10 times as many metrics, MLflow takes at once."""
_LONGEST = 500


class MLflow:
    """Runs of an experiment, at the address that MLflow is set to (MLFLOW_TRACKING_URI).

    The experiment is MLFLOW_EXPERIMENT_NAME, or ticketry. Metrics are sent when a run ends.
    """

    def __init__(self, store: Path) -> None:
        needs("mlflow", "mlflow", "logging to mlflow")
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        """MLflow's id of each run, by ours; of a whole that is finished too."""
        self._metrics: dict[str, list[Any]] = {}

    def start(self, run: Logged) -> bool:
        if self._client is None:
            self._connect()
        found = self._client.search_runs([self._experiment], f"tags.`{_ID}` = '{run.id}'", max_results=1)
        if found:
            self._runs[run.id] = found[0].info.run_id
            if found[0].info.status == "FINISHED":
                return False
            self._client.update_run(self._runs[run.id], status="RUNNING")
        else:
            self._runs[run.id] = self._created(run)
        self._metrics[run.id] = []
        return True

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._metrics[run.id] += [Metric(name, value, now, step) for name, value in values.items()]

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self._runs[run.id], str(path), kind)

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        own, metrics = self._runs[run.id], self._metrics.pop(run.id)
        for first in range(0, len(metrics), 10 * _BATCH):
            self._client.log_batch(own, metrics=metrics[first : first + 10 * _BATCH])
        self._client.set_terminated(own, "FAILED" if failed else "FINISHED")

    def where(self) -> str:
        return "mlflow ui" + (f" --backend-store-uri {uri}" if (uri := os.environ.get("MLFLOW_TRACKING_URI")) else "")

    def _connect(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ticketry")
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)

    def _created(self, run: Logged) -> str:
        """A new run, in its whole's if that is there, with all that is known of it."""
        from mlflow.entities import Param

        tags = {_ID: run.id, "ticketry.group": run.group, "ticketry.kind": run.kind}
        if not run.whole and (parent := self._runs.get(run.parent)):
            tags["mlflow.parentRunId"] = parent
        made = self._client.create_run(self._experiment, run_name=run.name, tags=tags)
        told = [Param(name, str(value)[:_LONGEST]) for name, value in {"kind": run.kind, **flat(run.config)}.items()]
        for first in range(0, len(told), _BATCH):
            self._client.log_batch(made.info.run_id, params=told[first : first + _BATCH])
        return str(made.info.run_id)
