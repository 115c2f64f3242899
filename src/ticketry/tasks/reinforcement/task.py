"""Tasks of reinforcement learning: an environment, a network, and the settings of deep Q-learning."""

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
from ticketry.tasks.reinforcement.q_learning import Learner, Memory, q_loss, step_and_store
from ticketry.tasks.task import Arithmetic, Course, Spec, Task
from ticketry_engine.support.seeds import generator, mix

VERSION = 1
"""Version of training and evaluation, as part of keys of stored results; increased when results change."""

RETURN = Metric("return", unit="", higher_is_better=True, summary="iqm")

_COPIES = 8
"""Number of environments that give the batches for scores."""
_EXPLORED = 0.5
"""Share of random actions in the batches for scores."""


@dataclass(frozen=True)
class ScoreBatch:
    """A batch for scores: observations [n, numbers], the actions taken [n] and the target values of these [n]."""

    seen: Tensor
    actions: Tensor
    wanted: Tensor


class Acting(Course):
    """Training and evaluation in an environment; an epoch has as many transitions as fit into the replay memory."""

    def __init__(self, environment: str, sizes: tuple[int, int], learning: Learning, acts: bool = True) -> None:
        """Create the course.

        Args:
            environment: name of the environment in Gymnasium.
            sizes: how many numbers an observation has, and how many actions there are.
            acts: see `Learner`.
        """
        self.environment, self.numbers_and_choices, self.learning, self._acts = environment, sizes, learning, acts

    def sizes(self) -> dict[str, int]:
        return {"train": self.learning.memory, "validation": EPISODES, "test": EPISODES}

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Learner:
        """Return a new training run; raise `TaskError` for a recipe with augmentations or label smoothing."""
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
        """Return the mean summed reward and the mean length of `EPISODES` episodes; every action is the best-rated.

        Each split has its own episodes, with fixed seeds.

        Raises:
            TrainingError: if a return or an action value is not finite.
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
    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[ScoreBatch]:
        """Return `count` batches of transitions; half of the actions are random, the others are the network's.

        The target of a transition is the reward + the discounted value that the network gives the next observation.
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
            step_and_store(memory, environments, torch.where(explored, at_random, best).tolist())
        order = torch.randperm(memory.count, generator=drawn)[: count * size]
        found = []
        for rows in torch.split(order, size):
            seen = memory.take(rows).to(device)
            wanted = seen.rewards + self.learning.gamma * model(seen.after).amax(1) * (1 - seen.ended)
            found.append(ScoreBatch(seen.seen, seen.actions, wanted))
        return found

    def loss(self, model: nn.Module, batch: ScoreBatch) -> Tensor:
        return q_loss(model(batch.seen), batch.actions, batch.wanted, self.learning.loss)

    def count(self, batch: ScoreBatch) -> int:
        return len(batch.actions)

    def inputs(self, count: int) -> Tensor:
        """Return standard normal noise for `count` observations; this creates no environment."""
        return torch.randn(count, self.numbers_and_choices[0], generator=torch.Generator().manual_seed(0))

    def few(self, count: int) -> Acting:
        """Return the course with few random transitions and no further actions, to measure the cost of an update."""
        copies = self.learning.copies
        warmup = min(copies * -(-count // copies), self.learning.memory)
        return Acting(self.environment, self.numbers_and_choices, replace(self.learning, warmup=warmup), acts=False)


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Task):
    """A task of reinforcement learning in an environment of Gymnasium."""

    name: str
    environment: str
    """Name of the environment in Gymnasium."""
    model: str
    """Name of the network, see `ticketry.tasks.models.build`; its outputs are the action values."""
    learning: Learning
    recipe: Recipe
    metric: Metric = RETURN
    spec: Spec | None = None

    def key(self) -> Mapping[str, object]:
        """Return values that identify the task, also by the version of Gymnasium and a custom environment's source."""
        return {
            "name": self.name,
            "version": VERSION,
            "environment": self.environment,
            "library": f"gymnasium {_gymnasium_version(self.environment)}",
            **self._custom_source,
            "learning": asdict(self.learning),
            **models.identity(self.model),
        }

    @property
    def _custom_source(self) -> Mapping[str, str]:
        own = "" if self.name in ENVIRONMENTS else source_of(self.environment)
        return {"source": own} if own else {}

    def build(self) -> nn.Module:
        shape, choices = self._input_shape_and_action_count
        return models.build(self.model, shape=shape, classes=choices)

    def narrower(self, parameters: int) -> str | None:
        shape, choices = self._input_shape_and_action_count
        return models.rival(self.model, shape=shape, classes=choices, parameters=parameters)

    def course(self, data: Path | None = None) -> Acting:
        return Acting(self.environment, _sizes(self.environment), self.learning)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        return self.course().inputs(count)

    @property
    def _input_shape_and_action_count(self) -> tuple[tuple[int, int, int], int]:
        """Return the shape of an observation as an image of 1x1 pixels, (numbers, 1, 1), and the number of actions."""
        numbers, choices = _sizes(self.environment)
        return (numbers, 1, 1), choices


_sizes = lru_cache(maxsize=64)(sizes_of)


def _gymnasium_version(environment: str) -> str:
    try:
        return metadata.version("gymnasium")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("gymnasium", EXTRA, f"the environment {environment}") from error


def create_task(spec: Spec) -> Reinforcement:
    """Create the task for the request `spec`: a name of `facts.ENVIRONMENTS` or gym:ENVIRONMENT.

    This creates no environment.

    Raises:
        TaskError: for an unknown option or network, or an invalid value.
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
