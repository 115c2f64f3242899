"""An environment as a course: networks are measured by the returns of episodes whose seeds are fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor, nn

from ticketry.core.seeds import generator, mix
from ticketry.errors import TrainingError
from ticketry.tasks.control.facts import EPISODES, Learning
from ticketry.tasks.control.learner import Learner, difference, step_into
from ticketry.tasks.control.memory import Memory
from ticketry.tasks.control.worlds import Numbers, Worlds
from ticketry.tasks.course import Arithmetic, Course
from ticketry.tasks.recipe import Recipe

_COPIES = 8
"""Of the environment, for what scores see."""
_EXPLORED = 0.5
"""Share of random actions there."""


@dataclass(frozen=True)
class Scored:
    """What a score sees: what was seen [n, numbers], the actions [n], and the values wanted of them [n]."""

    seen: Tensor
    actions: Tensor
    wanted: Tensor


class Control(Course):
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

        Each split has episodes of its own, whose seeds are fixed.

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

        worlds = Worlds(self.environment, EPISODES, mix("evaluate", split), self.learning.repeat)
        returns, lengths = worlds.play(best)
        if not isfinite(found := float(returns.mean())):
            raise TrainingError(f"the mean return in {self.environment} is {found}: its rewards are no finite numbers")
        return {"return": found, "length": float(lengths.mean())}

    @torch.no_grad()
    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Scored]:
        """Batches out of a memory that the network itself fills, every other action at random.

        What is wanted of it is the reward and what the network, as it is now, expects from there.
        """
        device = next(model.parameters()).device
        numbers, choices = self.numbers_and_choices
        drawn = generator(seed)
        worlds = Worlds(self.environment, _COPIES, seed, self.learning.repeat)
        rounds = -(-count * size // _COPIES)
        memory = Memory(rounds * _COPIES, numbers)
        for _ in range(rounds):
            explored = torch.rand(_COPIES, generator=drawn) < _EXPLORED
            at_random = torch.randint(choices, (_COPIES,), generator=drawn)
            best = model(torch.from_numpy(worlds.seen).to(device)).argmax(1).cpu()
            step_into(memory, worlds, torch.where(explored, at_random, best).tolist())
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

    def few(self, count: int) -> Control:
        """With a short warm-up, and nothing done in the environment: what that costs is not counted."""
        copies = self.learning.copies
        warmup = min(copies * -(-count // copies), self.learning.memory)
        return Control(self.environment, self.numbers_and_choices, replace(self.learning, warmup=warmup), acts=False)
