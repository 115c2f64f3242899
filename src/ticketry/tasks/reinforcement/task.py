"""An environment, a network and how it learns to act, as a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import metadata
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from ticketry.errors import MissingExtraError, TaskError, TrainingError
from ticketry.records.metric import Metric
from ticketry.tasks import models
from ticketry.tasks.facts import ENVIRONMENTS, EPISODES, EXTRA, GYM, OTHER, Learning
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.reinforcement.environments import Environments, Numbers, sizes_of, source_of
from ticketry.tasks.reinforcement.q_learning import Learner, Memory, difference, step_into
from ticketry.tasks.task import Arithmetic, Course, Spec, Task
from ticketry_engine.support.seeds import generator, mix

VERSION = 1
"""Version of how networks learn and are measured; raised by a change that moves a number."""

RETURN = Metric("return", unit="", higher_is_better=True, summary="iqm")

_COPIES = 8
"""Seed of the environment for batches of scores."""
_EXPLORED = 0.5
"""Share of random actions there."""


@dataclass(frozen=True)
class Scored:
    """The batch of a score: observations [n, numbers], the actions [n], and their target values [n]."""

    seen: Tensor
    actions: Tensor
    wanted: Tensor


class Acting(Course):
    """An epoch is as many updates as show the network as many transitions as the memory holds."""

    def __init__(self, environment: str, sizes: tuple[int, int], learning: Learning, acts: bool = True) -> None:
        """
        Args:
            environment: its name in Gymnasium.
            sizes: how many numbers there are to see, and how many actions.
            acts: see `Learner`.
        """
        self.environment, self.numbers_and_choices, self.learning, self._acts = environment, sizes, learning, acts

    def sizes(self) -> dict[str, int]:
        return {"train": self.learning.memory, "validation": EPISODES, "test": EPISODES}

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Learner:
        """Raises `TaskError` for what a recipe may have and reinforcement learning has not."""
        if recipe.augment:
            raise TaskError(f"{self.environment} has no augmentation {recipe.augment[0]!r}: choose a recipe without it")
        if recipe.label_smoothing:
            raise TaskError("returns have no labels: leave label smoothing away (--recipe.label-smoothing 0)")
        per_epoch = -(-self.learning.memory // recipe.batch)
        return Learner(
            self.environment,
            self.numbers_and_choices,
            self.learning,
            batch=recipe.batch,
            total=recipe.steps(per_epoch),
            seed=seed,
            arithmetic=arithmetic,
            acts=self._acts,
        )

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """The mean return and length of `EPISODES` episodes of the best action each, without discount.

        Each split has separate episodes with fixed seeds.

        Raises:
            TrainingError: if a return, or what the network expects, is not a finite number.
        """

        def best(seen: Numbers) -> list[int]:
            with arithmetic.autocast():
                values = model(torch.from_numpy(seen).to(arithmetic.device))
            if not bool(torch.isfinite(values).all()):  # argmax would take one of them for the best
                raise TrainingError(
                    f"the returns that the network expects in {self.environment} are not finite: its training"
                    " diverged; lower the learning rate or clip gradients (--recipe.lr, --recipe.clip)"
                )
            actions: list[int] = values.argmax(1).tolist()
            return actions

        environments = Environments(self.environment, EPISODES, mix("evaluate", split), self.learning.repeat)
        returns, lengths = environments.play(best)
        if not isfinite(found := float(returns.mean())):
            raise TrainingError(f"the mean return in {self.environment} is {found}: its rewards are no finite numbers")
        return {"return": found, "length": float(lengths.mean())}

    @torch.no_grad()
    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Scored]:
        """Batches out of a memory that the network itself fills, every other action at random.

        The target is the reward plus what the network expects from there.
        """
        device = next(model.parameters()).device
        numbers, choices = self.numbers_and_choices
        drawn = generator(seed)
        environments = Environments(self.environment, _COPIES, seed, self.learning.repeat)
        rounds = -(-count * size // _COPIES)
        memory = Memory(rounds * _COPIES, numbers)
        for _ in range(rounds):
            explored = torch.rand(_COPIES, generator=drawn) < _EXPLORED
            at_random = torch.randint(choices, (_COPIES,), generator=drawn)
            best = model(torch.from_numpy(environments.seen).to(device)).argmax(1).cpu()
            step_into(memory, environments, torch.where(explored, at_random, best).tolist())
        order = torch.randperm(memory.count, generator=drawn)[: count * size]
        found = []
        for rows in torch.split(order, size):
            seen = memory.take(rows).to(device)
            wanted = seen.rewards + self.learning.gamma * model(seen.after).amax(1) * (1 - seen.ended)
            found.append(Scored(seen.seen, seen.actions, wanted))
        return found

    def loss(self, model: nn.Module, batch: Scored) -> Tensor:
        return difference(model(batch.seen), batch.actions, batch.wanted, self.learning.loss)

    def count(self, batch: Scored) -> int:
        return len(batch.actions)

    def inputs(self, count: int) -> Tensor:
        """Noise: no environment is made."""
        return torch.randn(count, self.numbers_and_choices[0], generator=torch.Generator().manual_seed(0))

    def few(self, count: int) -> Acting:
        """With a short warm-up, and nothing done in the environment: what that costs is not counted."""
        copies = self.learning.copies
        warmup = min(copies * -(-count // copies), self.learning.memory)
        return Acting(self.environment, self.numbers_and_choices, replace(self.learning, warmup=warmup), acts=False)


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Task):
    """Acting in an environment of Gymnasium for as high a return as can be."""

    name: str
    environment: str
    """Its name in Gymnasium."""
    model: str
    """Name of the network, see `ticketry.tasks.models.build`; its outputs are the values of the actions."""
    learning: Learning
    recipe: Recipe
    metric: Metric = RETURN
    spec: Spec | None = None

    def key(self) -> Mapping[str, object]:
        """With the version of Gymnasium, which decides what its environments do, and the source of those of others."""
        return {
            "name": self.name,
            "version": VERSION,
            "environment": self.environment,
            "library": f"gymnasium {_version(self.environment)}",
            **self._source,
            "learning": asdict(self.learning),
            **models.identity(self.model),
        }

    @property
    def _source(self) -> Mapping[str, str]:
        own = "" if self.name in ENVIRONMENTS else source_of(self.environment)
        return {"source": own} if own else {}

    def build(self) -> nn.Module:
        shape, choices = self._shapes
        return models.build(self.model, shape=shape, classes=choices)

    def narrower(self, parameters: int) -> str | None:
        shape, choices = self._shapes
        return models.rival(self.model, shape=shape, classes=choices, parameters=parameters)

    def course(self, data: Path | None = None) -> Acting:
        return Acting(self.environment, _sizes(self.environment), self.learning)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        return self.course().inputs(count)

    @property
    def _shapes(self) -> tuple[tuple[int, int, int], int]:
        """Return the observation shape as networks for images take it, and the number of actions."""
        numbers, choices = _sizes(self.environment)
        return (numbers, 1, 1), choices


_sizes = lru_cache(maxsize=64)(sizes_of)


def _version(environment: str) -> str:
    try:
        return metadata.version("gymnasium")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("gymnasium", EXTRA, f"the environment {environment}") from error


def make(spec: Spec) -> Reinforcement:
    """The task that a request names: one of `facts.ENVIRONMENTS`, or gym:ENVIRONMENT. No environment is made.

    Raises:
        TaskError: for an unknown option or network, or a value that cannot be.
    """
    facts = ENVIRONMENTS.get(spec.name, OTHER)
    environment = facts.environment or spec.name.removeprefix(GYM)
    network = spec.model or facts.model
    if NetworkName.parse(network).library:
        raise TaskError(f"{network} takes images, and {spec.name} shows numbers: choose a perceptron, as {facts.model}")
    models.check(network, shape=(1, 1, 1))
    return Reinforcement(
        name=spec.name,
        environment=environment,
        model=network,
        learning=facts.learning.changed(dict(spec.options)),
        recipe=facts.recipe,
        spec=spec,
    )
