"""Tasks of control: options, keys, metrics, and the batches of scores."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from ticketry.errors import MissingExtraError, TaskError, TrainingError
from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks import catalogue
from ticketry.tasks.facts import ENVIRONMENTS, EPISODES
from ticketry.tasks.reinforcement import EnvironmentCourse, Environments
from ticketry_engine.support.seeds import mix_seeds

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'ticketry[control]'")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_built_in_environments_have_networks_for_their_observations(name: str) -> None:
    task = catalogue.get(name)
    facts = ENVIRONMENTS[name]
    world = gymnasium.make(facts.environment)
    seen, _ = world.reset(seed=0)
    torch.manual_seed(0)
    values = task.build()(torch.from_numpy(seen)[None])
    assert values.shape == (1, world.action_space.n)  # type: ignore[attr-defined]
    assert task.spec is not None
    assert catalogue.create_task(task.spec).key() == task.key()
    assert task.example(3).shape == (3, len(seen))


def test_the_key_depends_on_options_network_and_library() -> None:
    task = catalogue.get("cartpole")
    key = task.key()
    assert json.loads(json.dumps(key)) == key
    assert key["library"] == f"gymnasium {metadata.version('gymnasium')}"
    others = [catalogue.get("cartpole", options=options).key() for options in ({"gamma": "0.98"}, {"double": "false"})]
    others += [catalogue.get("cartpole", model="mlp-8").key(), catalogue.get("gym:CartPole-v1").key()]
    assert all(other != key for other in others)
    assert catalogue.get("cartpole", options={"gamma": "0.995"}).key() == key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "3"}, "there is no option steps: choose from copies, moves"),
        ({"copies": "2.5"}, r"the option copies is a whole number, not '2\.5'"),
        ({"gamma": "1.5"}, r"the option gamma lies in \[0, 1\], not 1\.5"),
        ({"double": "yes"}, "the option double is true or false, not 'yes'"),
        ({"loss": "l1"}, "the option loss is huber or squared"),
        ({"memory": "1001"}, "memory is a multiple of the number of copies, 8, not 1,001"),
        ({"warmup": "80000", "memory": "8000"}, "a warmup of 80,000 transitions does not fit into a memory of 8,000"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        catalogue.get("acrobot", options=options)


def test_networks_for_images_and_a_missing_gymnasium_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with pytest.raises(TaskError, match="timm:resnet18 takes images, and cartpole shows numbers"):
        catalogue.get("cartpole", model="timm:resnet18")
    monkeypatch.setattr("ticketry.tasks.reinforcement.metadata.version", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'ticketry\[control\]'"):
        catalogue.get("cartpole").key()


class Balancing(torch.nn.Module):
    """Push to where the pole falls: most episodes reach the time limit."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        push = self.one * (0.1 * seen[:, 1] + 0.3 * seen[:, 0] + seen[:, 2] * 10 + seen[:, 3] * 2)
        return torch.stack([-push, push], 1)


def course(**changes: Any) -> EnvironmentCourse:
    found = catalogue.get("gym:CartPole-v1", options={name: str(value) for name, value in changes.items()}).course()
    assert isinstance(found, EnvironmentCourse)
    return found


WORLD = """
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    reward = 1.0


gymnasium.register("Walk-v0", Walk, max_episode_steps=5)
"""


def test_the_source_of_a_custom_environment_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "world_of_mine.py").write_text(WORLD)
    task = catalogue.get("gym:world_of_mine:Walk-v0")
    try:
        before = task.key()
        assert before == catalogue.get("gym:Walk-v0").key() | {
            name: before[name] for name in ("name", "environment", "source")
        }
        (tmp_path / "world_of_mine.py").write_text(WORLD.replace("1.0", "2.0"))
        del gymnasium.registry["Walk-v0"]
        importlib.reload(sys.modules["world_of_mine"])
        assert {name for name in before if before[name] != task.key()[name]} == {"source"}
    finally:
        del gymnasium.registry["Walk-v0"], sys.modules["world_of_mine"]
    for name in ("gym:CartPole-v1", "cartpole"):
        assert "source" not in catalogue.get(name).key()
    with pytest.raises(TaskError, match=r"no_such_world:Walk-v0 cannot be created: .*no_such_world"):
        catalogue.get("gym:no_such_world:Walk-v0").key()


@pytest.mark.parametrize("repeat", [1, 3])
def test_metrics_are_those_of_episodes_one_by_one(repeat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, episodes = Balancing(), 3
    monkeypatch.setattr("ticketry.tasks.reinforcement.EPISODES", episodes)
    with torch.no_grad():
        found = course(repeat=repeat).evaluate(model, "test", Arithmetic())
        returns = []
        for copy in range(episodes):
            world = gymnasium.make("CartPole-v1")
            seen, _ = world.reset(seed=mix_seeds(mix_seeds("evaluate", "test"), "episode", copy, 0))
            total, steps, over = 0.0, 0, False
            while not over:
                if steps % repeat == 0:
                    action = int(model(torch.tensor(seen, dtype=torch.float32)[None]).argmax())
                seen, reward, terminated, truncated, _ = world.step(action)
                total, steps, over = total + float(reward), steps + 1, terminated or truncated
            returns.append(total)
    assert found["return"] == pytest.approx(sum(returns) / episodes)
    assert found["length"] == found["return"] > (400 if repeat == 1 else 10)


def test_splits_have_different_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Environments, "__init__", lambda self, name, *rest: seen.append(rest))
    monkeypatch.setattr(Environments, "play", lambda self, choose: (torch.ones(2).numpy(), torch.ones(2).numpy()))
    for split in ("train", "validation", "test", "test"):
        course().evaluate(Balancing(), split, Arithmetic())
    assert len(set(seen)) == 3
    assert {copies for copies, *_ in seen} == {EPISODES}


def test_metrics_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry.tasks.reinforcement.EPISODES", 2)
    model = Balancing()
    model.one.data.fill_(torch.nan)
    with torch.no_grad(), pytest.raises(TrainingError, match="expects in CartPole-v1 are not finite: its training div"):
        course().evaluate(model, "test", Arithmetic())
    nan = torch.full((2,), torch.nan).numpy()
    monkeypatch.setattr(Environments, "play", lambda self, choose: (nan, torch.ones(2).numpy()))
    with pytest.raises(TrainingError, match="the mean return in CartPole-v1 is nan"):
        course().evaluate(Balancing(), "test", Arithmetic())


def test_batches_of_scores() -> None:
    """Transitions, half of them chosen by the network, with the values that it expects."""
    model, given = Balancing(), course(gamma=0.9)
    batches = given.sample(model, 3, 50, seed=4)
    assert [given.count(batch) for batch in batches] == [50, 50, 50]
    seen, actions = torch.cat([one.seen for one in batches]), torch.cat([one.actions for one in batches])
    chosen = (model(seen).argmax(1) == actions).double().mean()
    assert 0.65 < float(chosen) < 0.85  # a half, and half of the other half by luck
    assert all(torch.equal(a.seen, b.seen) for a, b in zip(batches, given.sample(model, 3, 50, seed=4), strict=True))
    assert not torch.equal(batches[0].seen, given.sample(model, 3, 50, seed=5)[0].seen)
    # Of a pole that goes on: 1 + gamma times the best value a step later, which is above 0.9 * 0 + 1.
    wanted = torch.cat([one.wanted for one in batches])
    assert bool((wanted >= 1).all())
    loss = given.loss(model, batches[0])
    guess = model(batches[0].seen)[range(50), batches[0].actions]
    expected = torch.nn.functional.smooth_l1_loss(guess, batches[0].wanted)
    assert torch.allclose(loss, expected)
    assert not batches[0].wanted.requires_grad


def test_few_has_a_short_warm_up() -> None:
    few = course(warmup=1000).few(2)
    session = few.session(catalogue.get("cartpole").recipe.changed(batch=2), 0, Arithmetic())
    session.loss(catalogue.get("cartpole").build(), 0)
    assert len(session.state()["memory/actions"]) == 8


def test_augmentation_and_label_smoothing_are_refused() -> None:
    recipe = catalogue.get("cartpole").recipe
    with pytest.raises(TaskError, match="no augmentation 'flip'"):
        course().session(recipe.changed(augment=("flip",)), 0, Arithmetic())
    with pytest.raises(TaskError, match="leave label smoothing out"):
        course().session(recipe.changed(label_smoothing=0.1), 0, Arithmetic())
