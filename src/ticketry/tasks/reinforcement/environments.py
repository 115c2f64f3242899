"""Step several copies of an environment together, and save and restore their state bit for bit.

Most environments, such as LunarLander with its simulator Box2D, cannot save their state. But the seed of an episode and
the actions so far determine the state. So the saved state of a copy has the number of the episode, which gives the
seed, and the actions; to restore the copy, these actions are repeated.
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
"""Packages that ticketry's extra installs besides Gymnasium; for other packages, Gymnasium's error says what to do."""
LONGEST = 10_000
"""Largest number of steps of an episode in environments that set no limit."""


class Environments:
    """Copies of an environment that are stepped together; a copy whose episode ends starts the next one at once."""

    def __init__(self, name: str, copies: int, seed: int, repeat: int = 1) -> None:
        """Start the first episode of each copy.

        Args:
            name: name of the environment in Gymnasium.
            copies: number of copies.
            seed: seed of all episodes.
            repeat: number of environment steps for which an action is repeated; the rewards of these steps are summed.

        Raises:
            MissingExtraError, TaskError: see `create_environment`.
        """
        worlds = [create_environment(name) for _ in range(copies)]
        self.name, self.seed, self.repeat = name, seed, repeat
        steps = limit_of(worlds[0])
        self.limit = -(-steps // repeat)
        """Largest number of actions in an episode."""
        unwrapped = [_unwrap(world) for world in worlds]
        self._environments: list[Any] = (
            unwrapped if repeat == 1 else [_Repeated(world, repeat, steps) for world in unwrapped]
        )
        self._first = int(self._environments[0].action_space.start)
        self._episodes = [0] * copies
        self._actions: list[list[int]] = [[] for _ in range(copies)]
        self.seen = np.stack([self._start_episode(copy) for copy in range(copies)])
        """The current observations, float32 [copies, numbers]."""

    def step(self, actions: Sequence[int]) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """Take one action in every copy.

        Args:
            actions: number of the action of each copy, from 0.

        Returns:
            Rewards [copies]; the observations after the action [copies, numbers]; and whether a terminal state, not the
            time limit, ended the episode [copies]. If an episode ended, `seen` has the first observation of the next
            episode, not the last observation returned here.

        Raises:
            TrainingError: if a reward or an observation is not finite.
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
                self.seen[copy] = self._start_episode(copy)
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
        """Play an episode in each copy; return summed rewards [copies] and lengths in environment steps [copies].

        Args:
            choose: function that returns n actions for the observations [n, numbers] of unfinished episodes.
        """
        returns, lengths = np.zeros(len(self.seen)), np.zeros(len(self.seen), np.int64)
        unfinished = list(range(len(self.seen)))
        while unfinished:
            for copy, action in zip(unfinished.copy(), choose(self.seen[unfinished]), strict=True):
                seen, reward, terminated, truncated, _ = self._environments[copy].step(action + self._first)
                self.seen[copy] = np.ravel(seen)
                returns[copy] += reward
                lengths[copy] += 1
                if terminated or truncated or lengths[copy] == self.limit:
                    unfinished.remove(copy)
        return returns, np.array([world.steps for world in self._environments]) if self.repeat > 1 else lengths

    def state(self) -> dict[str, Tensor]:
        """Return, for each copy, the number of the episode, the actions so far, and the current observation."""
        longest = max(map(len, self._actions))
        padded = [taken + [-1] * (longest - len(taken)) for taken in self._actions]
        return {
            "episodes": torch.tensor(self._episodes, dtype=torch.int64),
            "actions": torch.tensor(padded, dtype=torch.int16).reshape(len(padded), longest),
            "seen": torch.from_numpy(self.seen.copy()),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the copies from `state`, as the method `state` returned it, by repeating the actions.

        Raises:
            TrainingError: if the environment is not deterministic.
        """
        self._episodes = state["episodes"].tolist()
        self._actions = [[action for action in taken if action >= 0] for taken in state["actions"].tolist()]
        for copy, taken in enumerate(self._actions):
            self.seen[copy] = self._start_episode(copy)
            for action in taken:
                self.seen[copy] = np.ravel(self._environments[copy].step(action + self._first)[0])
        if self.seen.tobytes() != state["seen"].contiguous().numpy().tobytes():
            raise TrainingError(
                f"the environment {self.name} does not do the same again after the same seed and actions, so that its"
                " training cannot go on: it is not deterministic, or another version of it was trained on"
            )

    def _start_episode(self, copy: int) -> Numbers:
        seen, _ = self._environments[copy].reset(seed=mix(self.seed, "episode", copy, self._episodes[copy]))
        return np.ravel(seen).astype(np.float32)


class _Repeated:
    """An environment that repeats every action for several steps and sums their rewards (frame skip)."""

    def __init__(self, world: Any, repeat: int, limit: int) -> None:
        self._world, self._repeat, self._limit = world, repeat, limit
        self.action_space = world.action_space
        self.steps = 0
        """Number of environment steps in the current episode so far."""

    def reset(self, *, seed: int) -> Any:
        self.steps = 0
        return self._world.reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, None]:
        """Repeat an action several times, or until the episode or its limit of steps ends."""
        total, terminated, truncated = 0.0, False, False
        for _ in range(min(self._repeat, self._limit - self.steps)):
            seen, reward, terminated, truncated, _ = self._world.step(action)
            total, self.steps = total + reward, self.steps + 1
            if terminated or truncated:
                break
        return seen, total, terminated, truncated, None


def create_environment(name: str) -> gymnasium.Env[Any, Any]:
    """Create an environment of Gymnasium with numeric observations (Box) and discrete actions.

    Raises:
        MissingExtraError: if Gymnasium or another package of the extra is not installed.
        TaskError: if the environment does not exist, needs another package, or has other kinds of observations or
            actions.
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
    except Exception as error:  # code of other packages may raise anything
        raise TaskError(f"the environment {name} cannot be made: {type(error).__name__}: {error}") from error
    seen, actions = world.observation_space, world.action_space
    if not isinstance(seen, gymnasium.spaces.Box) or not isinstance(actions, gymnasium.spaces.Discrete):
        raise TaskError(
            f"the environment {name} shows {type(seen).__name__} and takes {type(actions).__name__} actions: deep"
            " Q-learning is for numbers to see (Box) and actions to choose from (Discrete)"
        )
    return world


def _unwrap(world: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return the environment without the wrappers that Gymnasium adds to all; they take longer than a CartPole step.

    Wrappers that the environment was registered with (`additional_wrappers`) stay.
    """
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    while type(world) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        world = world.env
    return world


def limit_of(world: gymnasium.Env[Any, Any]) -> int:
    """Return the largest number of steps of an episode: the limit of the environment, or `LONGEST` without one."""
    return (world.spec and world.spec.max_episode_steps) or LONGEST


def sizes_of(name: str) -> tuple[int, int]:
    """Return how many numbers an observation has, and how many actions there are; errors as `create_environment`."""
    world = create_environment(name)
    return int(np.prod(world.observation_space.shape or (1,))), int(world.action_space.n)


def source_of(name: str) -> str:
    """Return a digest of the source code of a custom environment and its wrappers; empty for one of Gymnasium.

    For ``module:NAME`` the digest includes the module, which creates the environment. Errors as `create_environment`.
    """
    return digest_defining_source(*parts) if (parts := _custom_parts(name)) else ""


@lru_cache(maxsize=64)
def _custom_parts(name: str) -> tuple[object, ...]:
    world: Any = create_environment(name)
    module, colon, _ = name.partition(":")
    found: list[object] = [sys.modules[module]] if colon else []
    while world is not None:
        if type(world).__module__.partition(".")[0] != "gymnasium":
            found.append(type(world))
        world = None if world is world.unwrapped else world.env
    return tuple(found)
