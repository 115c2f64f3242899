"""An environment, a network and how it learns to act, as a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

from ticketry.errors import MissingExtraError, TaskError
from ticketry.tasks import models
from ticketry.tasks.base import Metric, Spec, Task
from ticketry.tasks.control.course import Control
from ticketry.tasks.control.facts import CONTROL, EXTRA, GYM, OTHER, Learning
from ticketry.tasks.control.worlds import sizes_of
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe

VERSION = 1
"""Of how networks learn and are measured; a change that moves a number raises it."""

RETURN = Metric("return", unit="", higher_is_better=True, summary="iqm")


@dataclass(frozen=True, kw_only=True)
class ControlTask(Task):
    """Acting in an environment of Gymnasium for as high a return as can be."""

    name: str
    environment: str
    """Its name in Gymnasium."""
    model: str
    """Of the network, see `ticketry.tasks.models.build`; its outputs are the values of the actions."""
    learning: Learning
    recipe: Recipe
    metric: Metric = RETURN
    spec: Spec | None = None

    def key(self) -> Mapping[str, object]:
        """With the version of Gymnasium, which decides what its environments do."""
        return {
            "name": self.name,
            "version": VERSION,
            "environment": self.environment,
            "library": f"gymnasium {_version(self.environment)}",
            "learning": asdict(self.learning),
            **models.identity(self.model),
        }

    def build(self) -> nn.Module:
        shape, choices = self._shapes
        return models.build(self.model, shape=shape, classes=choices)

    def narrower(self, parameters: int) -> str | None:
        shape, choices = self._shapes
        return models.narrower(self.model, shape=shape, classes=choices, parameters=parameters)

    def course(self, data: Path | None = None) -> Control:
        return Control(self.environment, _sizes(self.environment), self.learning)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        return self.course().inputs(count)

    @property
    def _shapes(self) -> tuple[tuple[int, int, int], int]:
        """Of what is seen, as networks for images take it, and the number of actions."""
        numbers, choices = _sizes(self.environment)
        return (numbers, 1, 1), choices


_sizes = lru_cache(maxsize=64)(sizes_of)


def _version(environment: str) -> str:
    try:
        return metadata.version("gymnasium")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("gymnasium", EXTRA, f"the environment {environment}") from error


def make(spec: Spec) -> ControlTask:
    """The task that a request names: one of `facts.CONTROL`, or gym:ENVIRONMENT. No environment is made.

    Raises:
        TaskError: for an unknown option or network, or a value that cannot be.
    """
    facts = CONTROL.get(spec.name, OTHER)
    environment = facts.environment or spec.name.removeprefix(GYM)
    network = spec.model or facts.model
    if NetworkName.parse(network).library:
        raise TaskError(f"{network} takes images, and {spec.name} shows numbers: choose a perceptron, as {facts.model}")
    models.check(network, shape=(1, 1, 1))
    return ControlTask(
        name=spec.name,
        environment=environment,
        model=network,
        learning=facts.learning.changed(dict(spec.options)),
        recipe=facts.recipe,
        spec=spec,
    )
