"""The protocol of loggers, the runs that they receive, and the registry of loggers."""

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
    """One run on a dashboard: a training, or a whole search or verification, see `kind`."""

    group: str
    """Name of the search or verification that it belongs to."""
    name: str
    """Unique in its group; a whole search or verification has the name of the group."""
    kind: str
    """dense, ticket, a control's name, mask (a training that only finds a mask), search or verification."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """JSON values: settings, recipe, seeds, level, replicate, density."""

    @property
    def whole(self) -> bool:
        """Whether this is a search or verification, not a training."""
        return self.name == self.group

    @property
    def parent(self) -> str:
        """The id of the search or verification to which the training belongs."""
        return Logged(self.group, self.group, "").id

    @property
    def id(self) -> str:
        """16 hexadecimal digits, derived from group and name."""
        return f"{mix(0, self.group, self.name) % 2**64:016x}"


class Logger(Protocol):
    """A dashboard, created from the store's folder by the class or function in `LOGGERS`.

    All calls come from one thread. For each run they are `start`, then any number of `metrics` and `artifact`, then
    `finish`. A search is started before its trainings and finished after them. If a method raises, that is reported
    once, and the logger is not called again: it never stops a training.
    """

    def start(self, run: Logged) -> bool:
        """Start a run; return False if it exists and is finished, so that nothing more is reported about it."""

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step, in the order of steps: the iteration of a training, the level of a search."""

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        """Log a file or folder: a ticket, or a record with verdicts."""

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        """End a run; `failed` if it was stopped or raised an error."""

    def where(self) -> str:
        """Return how to look at the logs: a command, or an address."""


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
    """Return nested settings as one level with names such as ``recipe.lr``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_names(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
