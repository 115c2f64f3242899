"""Copies of environments against Gymnasium, and states that are restored in the middle of episodes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ticketry.errors import MissingExtraError, TaskError, TrainingError
from ticketry.tasks.reinforcement import (
    LONGEST,
    Environments,
    count_observations_and_actions,
    create_environment,
    find_step_limit,
)
from ticketry_engine.support.seeds import mix_seeds

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'ticketry[control]'")

NAMES = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
CHOICES = {"CartPole-v1": 2, "Acrobot-v1": 3, "LunarLander-v3": 4}


def random_actions(name: str, steps: int, copies: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, CHOICES[name], (steps, copies)).tolist()


def repeated(world: gymnasium.Env[Any, Any], action: int, repeat: int) -> tuple[Any, float, bool, bool, int]:
    """Repeat an action in an environment of Gymnasium with its own time limit."""
    total, steps, terminated, truncated = 0.0, 0, False, False
    seen: Any = None
    while steps < repeat and not (terminated or truncated):
        seen, reward, terminated, truncated, _ = world.step(action)
        total, steps = total + float(reward), steps + 1
    return seen, total, terminated, truncated, steps


@pytest.mark.parametrize(("name", "repeat"), [("CartPole-v1", 1), ("Acrobot-v1", 7), ("LunarLander-v3", 1)])
def test_steps_are_those_of_gymnasium(name: str, repeat: int) -> None:
    """One copy after the other; 7 does not divide the time limit."""
    actions = random_actions(name, 550 // repeat + 50, 2)
    environments = Environments(name, 2, seed=5, repeat=repeat)
    found = [(*environments.step(each), environments.seen.copy()) for each in actions]
    for copy in range(2):
        world, episode = gymnasium.make(name), 0
        seen, _ = world.reset(seed=mix_seeds(5, "episode", copy, 0))
        for each, (rewards, after, ended, now) in zip(actions, found, strict=True):
            seen, reward, terminated, truncated, _ = repeated(world, each[copy], repeat)
            assert after[copy].tobytes() == np.float32(seen).tobytes()
            assert (rewards[copy], ended[copy]) == (np.float32(reward), terminated)
            if terminated or truncated:
                episode += 1
                seen, _ = world.reset(seed=mix_seeds(5, "episode", copy, episode))
            assert now[copy].tobytes() == np.float32(seen).tobytes()
        assert episode > 0


@pytest.mark.parametrize(("name", "repeat"), [("CartPole-v1", 1), ("Acrobot-v1", 1), ("LunarLander-v3", 4)])
def test_a_restored_state_continues_bit_for_bit(name: str, repeat: int) -> None:
    """In the middle of episodes, in copies that had other episodes before."""
    one, other = (Environments(name, 3, seed=2, repeat=repeat) for _ in range(2))
    first = one.state()
    assert first["actions"].shape == (3, 0)
    for environments, steps, seed in ((one, 37, 0), (other, 61, 9)):
        for each in random_actions(name, steps, 3, seed):
            environments.step(each)
    state = one.state()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    other.load_state(state)
    assert other.seen.tobytes() == one.seen.tobytes()
    for each in random_actions(name, 100, 3, seed=1):
        for mine, theirs in zip(one.step(each), other.step(each), strict=True):
            assert mine.tobytes() == theirs.tobytes()
    assert all(torch.equal(tensor, other.state()[key]) for key, tensor in one.state().items())
    other.load_state(first)
    assert other.seen.tobytes() == first["seen"].numpy().tobytes()


@pytest.mark.parametrize(("name", "repeat"), [("CartPole-v1", 1), ("Acrobot-v1", 7)])
def test_play_is_an_episode_of_each(name: str, repeat: int) -> None:
    """The sign of the last number decides the action; lengths are steps of the environment."""

    def choose(seen: np.ndarray) -> list[int]:
        return (seen[:, -1] > 0).astype(int).tolist()

    returns, lengths = Environments(name, 3, seed=3, repeat=repeat).play(choose)
    for copy in range(3):
        world = gymnasium.make(name)
        seen, _ = world.reset(seed=mix_seeds(3, "episode", copy, 0))
        total, count, over = 0.0, 0, False
        while not over:
            action = choose(np.float32(seen)[None])[0]
            seen, reward, terminated, truncated, steps = repeated(world, action, repeat)
            total, count, over = total + reward, count + steps, terminated or truncated
        assert (returns[copy], lengths[copy]) == (pytest.approx(total), count)


class Odd(gymnasium.Env[Any, Any]):
    """A matrix as observation, actions 5 and 6, no time limit; not deterministic on request."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2, 2))
    action_space = gymnasium.spaces.Discrete(2, start=5)  # type: ignore[assignment]

    def __init__(self, chance: bool = False) -> None:
        self._chance = chance

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros((2, 2)), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        source = np.random.default_rng() if self._chance else self.np_random
        return source.random((2, 2)), float(action), False, False, {}


class Diverging(Odd):
    """Rewards or observations are not finite from the third step on."""

    def __init__(self, what: str = "reward") -> None:
        super().__init__()
        self._what, self._steps = what, 0

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, *rest = super().step(action)
        self._steps += 1
        if self._steps > 2:
            seen, reward = (seen, float("nan")) if self._what == "reward" else (seen * np.inf, reward)
        return seen, reward, *rest  # type: ignore[return-value]


class Continuous(Odd):
    action_space = gymnasium.spaces.Box(-1, 1, (1,))  # type: ignore[assignment]


@pytest.fixture
def registered() -> Callable[..., str]:
    def register(kind: type, **arguments: Any) -> str:
        name = f"Test{kind.__name__}-v0"
        gymnasium.register(name, kind, kwargs=arguments)
        return name

    yield register
    for name in [name for name in gymnasium.registry if name.startswith("Test")]:
        del gymnasium.registry[name]


def test_observations_are_flattened_and_actions_start_at_0(registered: Callable[..., str]) -> None:
    name = registered(Odd)
    assert count_observations_and_actions(name) == (4, 2)
    assert find_step_limit(create_environment(name)) == LONGEST
    rewards, after, _ = Environments(name, 1, seed=0).step([1])
    assert (rewards.tolist(), after.shape) == ([6.0], (1, 4))


def test_an_environment_that_is_not_deterministic_cannot_resume(registered: Callable[..., str]) -> None:
    environments = Environments(registered(Odd, chance=True), 1, seed=0)
    environments.step([0])
    with pytest.raises(TrainingError, match="does not repeat an episode after the same seed and actions"):
        environments.load_state(environments.state())


@pytest.mark.parametrize(("what", "message"), [("reward", "a reward in"), ("seen", "what is seen in")])
def test_values_that_are_not_finite_are_refused(registered: Callable[..., str], what: str, message: str) -> None:
    environments = Environments(registered(Diverging, what=what), 2, seed=0)
    environments.step([0, 0])
    environments.step([1, 0])
    with pytest.raises(TrainingError, match=f"{message} the environment TestDiverging-v0 is not a finite number"):
        environments.step([0, 1])


class Halved(gymnasium.RewardWrapper):  # type: ignore[type-arg]
    def reward(self, reward: Any) -> float:
        return float(reward) / 2


def test_wrappers_of_an_environment_are_applied() -> None:
    spec = gymnasium.envs.registration.WrapperSpec("Halved", f"{__name__}:Halved", {})
    gymnasium.register("TestHalved-v0", Odd, max_episode_steps=3, additional_wrappers=(spec,))
    try:
        environments = Environments("TestHalved-v0", 1, seed=0)
        rewards = [environments.step([1])[0].item() for _ in range(4)]
        assert (environments.limit, rewards) == (3, [3.0] * 4)
        assert environments.state()["episodes"].tolist() == [1]
    finally:
        del gymnasium.registry["TestHalved-v0"]


def test_unusable_environments_are_refused(registered: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=r"NoSuch-v0 cannot be created: .*doesn't exist"):
        create_environment("NoSuch-v0")
    with pytest.raises(TaskError, match="takes Box actions: deep Q-learning is for"):
        create_environment(registered(Continuous))
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError, match=r"LunarLander-v3 needs .*pip install 'ticketry\[control\]'"):
        create_environment("LunarLander-v3")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(TaskError, match=r'Ant-v5 cannot be created: .*pip install "gymnasium\[mujoco\]"'):
        create_environment("Ant-v5")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"CartPole-v1 needs gymnasium, .* 'ticketry\[control\]'"):
        create_environment("CartPole-v1")
