"""Define the interface of loggers, the description of runs that they get, and the registry of loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from ticketry.errors import UsageError
from ticketry.registry import Registry
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Logged:
    """Describes a run on a dashboard, which is a training, or a whole search or verification."""

    group: str
    """Name of the search or verification to which the run belongs."""
    name: str
    """Name of the run, unique in its group; the run of a whole search or verification has the name of the group."""
    kind: str
    """dense, ticket, the name of a control, mask (a training that only finds a mask), search or verification."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Settings, recipe, seeds, level, replicate and density, as JSON values."""

    @property
    def whole(self) -> bool:
        """Whether this run is a whole search or verification, not a training."""
        return self.name == self.group

    @property
    def parent(self) -> str:
        """Id of the run of the search or verification to which this run belongs."""
        return Logged(self.group, self.group, "").id

    @property
    def id(self) -> str:
        """Id of the run: 16 hexadecimal digits that are derived from group and name."""
        return f"{mix(0, self.group, self.name) % 2**64:016x}"


class Logger(Protocol):
    """Sends reports to a dashboard; a class or function in `LOGGERS` creates a logger from the store's folder.

    One thread makes all calls. For each run it calls `start`, then `metrics` and `artifact` any number of times, then
    `finish`. The run of a search starts before the runs of its trainings and ends after them. If a method raises an
    error, a warning is logged and the logger is not called again; trainings continue.
    """

    def start(self, run: Logged) -> bool:
        """Start a run and return True; return False, to get no more reports, if the dashboard has the finished run."""

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Log numbers for a step, which is the iteration of a training or the level of a search; steps increase."""

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        """Log a file or folder of some kind, such as a ticket or a record with verdicts."""

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        """End a run; `failed` says whether the run was stopped or raised an error."""

    def where(self) -> str:
        """Return a command or an address with which a user can look at the logs."""


MakeLogger = Callable[[Path], Logger]
"""Creates a logger from the store's folder."""


def _check_logger_factory(name: str, found: Any) -> MakeLogger:
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a logger is a class, or a function that creates one")
    return cast(MakeLogger, found)


LOGGERS: Registry[MakeLogger] = Registry(
    "logger",
    "ticketry.loggers",
    {
        "trackio": "ticketry.lab.loggers.libraries:Trackio",
        "wandb": "ticketry.lab.loggers.libraries:Wandb",
        "mlflow": "ticketry.lab.loggers.libraries:MLflow",
        "tensorboard": "ticketry.lab.loggers.libraries:TensorBoard",
    },
    make=_check_logger_factory,
)


def flatten_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as a flat dict, with names such as ``recipe.lr``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_names(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
