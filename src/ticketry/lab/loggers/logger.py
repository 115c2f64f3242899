"""What is told of trainings to a dashboard: the protocol of loggers, what is logged, and which there are."""

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
    """One run of a dashboard: a training, or the whole of a search or verification (`kind` says which)."""

    group: str
    """What it belongs to: the name of a search or verification; the same for all its trainings."""
    name: str
    """Unique in its group; of the whole it is the group's."""
    kind: str
    """dense, ticket, a control's name, mask (a training that a mask comes from); of a whole search or verification."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """JSON values: settings, recipe, seeds, level, replicate, density."""

    @property
    def whole(self) -> bool:
        """Whether it is the whole that trainings belong to."""
        return self.name == self.group

    @property
    def parent(self) -> str:
        """The id of the whole that it belongs to."""
        return Logged(self.group, self.group, "").id

    @property
    def id(self) -> str:
        """16 hexadecimal digits, the same whenever the same is logged."""
        return f"{mix(0, self.group, self.name) % 2**64:016x}"


class Logger(Protocol):
    """A dashboard. Made by its class or function with the store's folder, see `LOGGERS`.

    All calls come from one thread, in this order of one run: `start`, `metrics` and `artifact` as often as there is
    something to tell, `finish`. A whole is begun before its trainings and finished after them. What a method raises is
    told once, and the logger is then left alone: it never stops a training.
    """

    def start(self, run: Logged) -> bool:
        """Begin a run. False if it is there already and finished: then nothing more is told of it."""

    def metrics(self, run: Logged, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step, in the order of steps: of a training its iteration, of a whole the level."""

    def artifact(self, run: Logged, path: Path, kind: str) -> None:
        """A file or folder to keep: a ticket, or a record with verdicts."""

    def finish(self, run: Logged, *, failed: bool = False) -> None:
        """End a run; `failed` where it was stopped or went wrong."""

    def where(self) -> str:
        """How to look at it: a command, or an address."""


MakeLogger = Callable[[Path], Logger]
"""Of the store's folder."""


def _makes_a_logger(name: str, found: Any) -> MakeLogger:
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a logger is a class, or a function that makes one")
    return cast(MakeLogger, found)


LOGGERS: Registry[MakeLogger] = Registry(
    "logger",
    "ticketry.loggers",
    {
        "trackio": "ticketry.lab.loggers.trackio:Trackio",
        "wandb": "ticketry.lab.loggers.wandb:Wandb",
        "mlflow": "ticketry.lab.loggers.mlflow:MLflow",
        "tensorboard": "ticketry.lab.loggers.tensorboard:TensorBoard",
    },
    make=_makes_a_logger,
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in settings as ``recipe.lr``: for dashboards that know names and values alone."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
