"""Copies of an environment that are stepped together, whose state can be taken out and put back bit for bit.

Few environments give their state away: Box2D, behind LunarLander, has no way to. All of them have one in common: what
happens in an episode is decided by the seed that it began with and the actions since. So the state of a copy is the
number of its episode, which its seed is made of, and the actions; put back, they are taken once more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketry.errors import MissingExtraError, TaskError, TrainingError
from ticketry.registry import digest_defining_source, import_from_here
from ticketry.tasks.facts import EXTRA
from ticketry_engine.support.seeds import mix

if TYPE_CHECKING:
    import gymnasium

Numbers = NDArray[np.float32]
_IN_EXTRA = ("box2d", "pygame")
"""Packages that the extra installs besides Gymnasium; Gymnasium itself names other missing packages."""
LONGEST = 10_000
"""Steps of an episode in an environment that sets no limit."""


class Environments:
    """Copies of an environment. One whose episode ends begins the next at once."""

    def __init__(self, name: str, copies: int, seed: int, repeat: int = 1) -> None:
        """All copies at the beginning of their first episodes.

        Args:
            name: of the environment in Gymnasium.
            seed: of all episodes.
            repeat: steps of the environment for which an action is taken; its rewards are summed.

        Raises:
            MissingExtraError, TaskError: see `create_environment`.
        """
        made_ones = [create_environment(name) for _ in range(copies)]
        self.name, self.seed, self.repeat = name, seed, repeat
        steps = limit_of(made_ones[0])
        self.limit = -(-steps // repeat)
        """Actions of an episode at most."""
        bare = [_bare(world) for world in made_ones]
        self._environments: list[Any] = bare if repeat == 1 else [_Repeated(world, repeat, steps) for world in bare]
        self._first = int(self._environments[0].action_space.start)
        self._episodes = [0] * copies
        self._actions: list[list[int]] = [[] for _ in range(copies)]
        self.seen = np.stack([self._begin(copy) for copy in range(copies)])
        """float32 [copies, numbers]: what there is to see now."""

    def step(self, actions: Sequence[int]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """One action of every copy.

        Args:
            actions: of each copy, from 0 on.

        Returns:
            Rewards [copies]; what is seen after it [copies, numbers], where `seen` has the next episode's
            beginning if this one ended; and whether a terminal state ended it, rather than its length limit [copies].

        Raises:
            TrainingError: if a reward or what is seen is not a finite number.
        """
        rewards, ended = np.empty(len(actions), np.float32), np.zeros(len(actions), np.bool_)
        after, finite = np.empty_like(self.seen), True
        for copy, action in enumerate(actions):
            seen, reward, terminated, truncated, _ = self._environments[copy].step(action + self._first)
            taken = self._actions[copy]
            taken.append(action)
            after[copy], rewards[copy], ended[copy] = np.ravel(seen), reward, terminated
            finite = finite and isfinite(reward)
            if terminated or truncated or len(taken) == self.limit:
                self._episodes[copy] += 1
                self._actions[copy] = []
                self.seen[copy] = self._begin(copy)
            else:
                self.seen[copy] = after[copy]
        if not (finite and isfinite(np.add.reduce(after, axis=None))):  # a sum is finite only if its terms are
            what = "what is seen" if finite else "a reward"
            raise TrainingError(
                f"{what} in the environment {self.name} is not a finite number: it diverged, and nothing can be learnt"
                " from it"
            )
        return rewards, after, ended

    def play(self, choose: Callable[[Numbers], list[int]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns and lengths (steps of the environment) [copies] of an episode of each copy, from beginning to end.

        Args:
            choose: actions for the observations [n, numbers] of the copies with unfinished episodes.
        """
        returns, lengths = np.zeros(len(self.seen)), np.zeros(len(self.seen), np.int64)
        going = list(range(len(self.seen)))
        while going:
            for copy, action in zip(going.copy(), choose(self.seen[going]), strict=True):
                seen, reward, terminated, truncated, _ = self._environments[copy].step(action + self._first)
                self.seen[copy] = np.ravel(seen)
                returns[copy] += reward
                lengths[copy] += 1
                if terminated or truncated or lengths[copy] == self.limit:
                    going.remove(copy)
        return returns, np.array([world.steps for world in self._environments]) if self.repeat > 1 else lengths

    def state(self) -> dict[str, Tensor]:
        """Number of the episode of each copy, its actions so far, and what is seen now."""
        longest = max(map(len, self._actions))
        padded = [taken + [-1] * (longest - len(taken)) for taken in self._actions]
        return {
            "episodes": torch.tensor(self._episodes, dtype=torch.int64),
            "actions": torch.tensor(padded, dtype=torch.int16).reshape(len(padded), longest),
            "seen": torch.from_numpy(self.seen.copy()),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises:
            TrainingError: if the environment does not do the same again.
        """
        self._episodes = state["episodes"].tolist()
        self._actions = [[action for action in taken if action >= 0] for taken in state["actions"].tolist()]
        for copy, taken in enumerate(self._actions):
            self.seen[copy] = self._begin(copy)
            for action in taken:
                self.seen[copy] = np.ravel(self._environments[copy].step(action + self._first)[0])
        if self.seen.tobytes() != state["seen"].contiguous().numpy().tobytes():
            raise TrainingError(
                f"the environment {self.name} does not do the same again after the same seed and actions, so that its"
                " training cannot go on: it is not deterministic, or another version of it was trained on"
            )

    def _begin(self, copy: int) -> Numbers:
        seen, _ = self._environments[copy].reset(seed=mix(self.seed, "episode", copy, self._episodes[copy]))
        return np.ravel(seen).astype(np.float32)


class _Repeated:
    """An environment in which every action is taken for several steps, and their rewards are summed (frame skip)."""

    def __init__(self, world: Any, repeat: int, limit: int) -> None:
        self._world, self._repeat, self._limit = world, repeat, limit
        self.action_space = world.action_space
        self.steps = 0
        """Seed of the environment in this episode."""

    def reset(self, *, seed: int) -> Any:
        self.steps = 0
        return self._world.reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, None]:
        """Step the environment; it stops where the episode ends, or at its limit."""
        total, terminated, truncated = 0.0, False, False
        for _ in range(min(self._repeat, self._limit - self.steps)):
            seen, reward, terminated, truncated, _ = self._world.step(action)
            total, self.steps = total + reward, self.steps + 1
            if terminated or truncated:
                break
        return seen, total, terminated, truncated, None


def create_environment(name: str) -> gymnasium.Env[Any, Any]:
    """An environment of Gymnasium with numbers to see and a choice of actions.

    Raises:
        MissingExtraError: if Gymnasium is not installed, or what the extra installs besides.
        TaskError: if there is no such environment, it needs another package, or it has other things to see or to do.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("gymnasium", EXTRA, f"the environment {name}") from error
    if ":" in name:  # module:NAME, which Gymnasium imports
        import_from_here()
    try:
        world = gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.Error as error:
        missing = str(getattr(error.__cause__, "name", None))
        if missing.lower() in _IN_EXTRA:
            raise MissingExtraError(missing, EXTRA, f"the environment {name}") from error
        raise TaskError(f"the environment {name} cannot be made: {error}") from error
    except Exception as error:  # another's module or class may do anything at all
        raise TaskError(f"the environment {name} cannot be made: {type(error).__name__}: {error}") from error
    seen, actions = world.observation_space, world.action_space
    if not isinstance(seen, gymnasium.spaces.Box) or not isinstance(actions, gymnasium.spaces.Discrete):
        raise TaskError(
            f"the environment {name} shows {type(seen).__name__} and takes {type(actions).__name__} actions: deep"
            " Q-learning is for numbers to see (Box) and actions to choose from (Discrete)"
        )
    return world


def _bare(world: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Without what Gymnasium itself puts around every environment, which takes longer than a step of a pole.

    What an environment was registered with besides (`additional_wrappers`) stays.
    """
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    while type(world) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        world = world.env
    return world


def limit_of(world: gymnasium.Env[Any, Any]) -> int:
    """Steps after which an episode is broken off: the environment's own limit, or `LONGEST` if it has none."""
    return (world.spec and world.spec.max_episode_steps) or LONGEST


def sizes_of(name: str) -> tuple[int, int]:
    """How many numbers there are to see, and how many actions; raises what `create_environment` does."""
    world = create_environment(name)
    return int(np.prod(world.observation_space.shape or (1,))), int(world.action_space.n)


def source_of(name: str) -> str:
    """A digest of the source of an environment that is not Gymnasium's own, for keys (see `registry.sources`); else "".

    Of what is wrapped around it those wrappers count that are not Gymnasium's, and of ``module:NAME`` the module, which
    says how the environment is made. Raises what `create_environment` does.
    """
    return digest_defining_source(*outside) if (outside := _outside(name)) else ""


@lru_cache(maxsize=64)
def _outside(name: str) -> tuple[object, ...]:
    world: Any = create_environment(name)
    module, colon, _ = name.partition(":")
    found: list[object] = [sys.modules[module]] if colon else []
    while world is not None:
        if type(world).__module__.partition(".")[0] != "gymnasium":
            found.append(type(world))
        world = None if world is world.unwrapped else world.env
    return tuple(found)
