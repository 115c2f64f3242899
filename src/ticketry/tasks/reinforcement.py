"""Reinforcement learning by deep Q-learning: environments, training with a replay memory, and the task.

Mnih et al., "Human-level control through deep reinforcement learning" (2015), algorithm 1, with several copies of the
environment; optionally with the targets of van Hasselt, Guez & Silver, "Deep Reinforcement Learning with Double
Q-learning" (2016). The target network is a copy of the weights: the network itself is called with these weights, so
that masks, removed units and gates of the network apply to the target network too.

The state of environments is saved and restored bit for bit. Most environments, such as LunarLander with its
simulator Box2D, cannot save their state. But the seed of an episode and the actions so far determine the state. So the
saved state of a copy has the number of the episode, which gives the seed, and the actions; to restore the copy, these
actions are repeated.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.core.scope import name_without_wrappers
from ticketry.errors import MissingExtraError, TaskError, TrainingError
from ticketry.records.metric import Metric
from ticketry.registry import digest_defining_source, put_current_folder_on_path
from ticketry.tasks import models
from ticketry.tasks.facts import ENVIRONMENTS, EPISODES, EXTRA, GYM, OTHER, Learning
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Arithmetic, Course, Session, Spec, Task
from ticketry_engine.support.seeds import generator, mix_seeds

if TYPE_CHECKING:
    import gymnasium


Numbers = NDArray[np.float32]
_IN_EXTRA = ("box2d", "pygame")
"""Packages that ticketry's extra installs besides Gymnasium; for other packages, Gymnasium's error says what to do."""
LONGEST = 10_000
"""Largest number of steps of an episode in environments that set no limit."""


class Environments:
    """Copies of an environment that are stepped together; when an episode ends, its copy starts the next episode."""

    def __init__(self, name: str, copies: int, seed: int, repeat: int = 1) -> None:
        """Start the first episode of each copy; `repeat` is the number of environment steps for each action."""
        worlds = [create_environment(name) for _ in range(copies)]
        self.name, self.seed, self.repeat = name, seed, repeat
        steps = find_step_limit(worlds[0])
        self.limit = -(-steps // repeat)
        """Largest number of actions in an episode."""
        self._environments: list[Any] = [_unwrap_environment(world) for world in worlds]
        if repeat > 1:
            self._environments = [_Repeated(world, repeat, steps) for world in self._environments]
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
        """Play an episode in each copy; return the sum of rewards and the number of steps of each episode, [copies].

        `choose` is called with the observations [n, numbers] of unfinished episodes, and returns n actions.
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
        """Restore the copies from `state`, a result of the method `state`, by repeating the actions of its episodes."""
        self._episodes = state["episodes"].tolist()
        self._actions = [[action for action in taken if action >= 0] for taken in state["actions"].tolist()]
        for copy, taken in enumerate(self._actions):
            self.seen[copy] = self._start_episode(copy)
            for action in taken:
                self.seen[copy] = np.ravel(self._environments[copy].step(action + self._first)[0])
        if self.seen.tobytes() != state["seen"].contiguous().numpy().tobytes():
            raise TrainingError(
                f"the environment {self.name} does not repeat an episode after the same seed and actions, so that its"
                " training cannot continue: it is not deterministic, or another version of it was trained on"
            )

    def _start_episode(self, copy: int) -> Numbers:
        seen, _ = self._environments[copy].reset(seed=mix_seeds(self.seed, "episode", copy, self._episodes[copy]))
        return np.ravel(seen).astype(np.float32)


class _Repeated:
    """An environment that repeats every action for several steps and sums the rewards (frame skip)."""

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
    """Create an environment of Gymnasium with numeric observations (Box) and discrete actions."""
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("gymnasium", EXTRA, f"the environment {name}") from error
    if ":" in name:  # module:NAME, which Gymnasium imports
        put_current_folder_on_path()
    try:
        world = gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.Error as error:
        missing = str(getattr(error.__cause__, "name", None))
        if missing.lower() in _IN_EXTRA:
            raise MissingExtraError(missing, EXTRA, f"the environment {name}") from error
        raise TaskError(f"the environment {name} cannot be created: {error}") from error
    except Exception as error:  # code of other packages may raise anything
        raise TaskError(f"the environment {name} cannot be created: {type(error).__name__}: {error}") from error
    seen, actions = world.observation_space, world.action_space
    if not isinstance(seen, gymnasium.spaces.Box) or not isinstance(actions, gymnasium.spaces.Discrete):
        raise TaskError(
            f"the environment {name} shows {type(seen).__name__} and takes {type(actions).__name__} actions: deep"
            " Q-learning is for numbers to see (Box) and actions to choose from (Discrete)"
        )
    return world


def _unwrap_environment(world: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return the environment without the wrappers that Gymnasium always adds, since they are slow.

    Wrappers with which the environment was registered (`additional_wrappers`) stay.
    """
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    while type(world) in (TimeLimit, OrderEnforcing, PassiveEnvChecker):
        world = world.env
    return world


def find_step_limit(world: gymnasium.Env[Any, Any]) -> int:
    """Return the largest number of steps of an episode; `LONGEST` if the environment sets no limit."""
    return (world.spec and world.spec.max_episode_steps) or LONGEST


def count_observations_and_actions(name: str) -> tuple[int, int]:
    """Return (numbers in an observation, number of actions); raise the errors of `create_environment`."""
    world = create_environment(name)
    return int(np.prod(world.observation_space.shape or (1,))), int(world.action_space.n)


@lru_cache(maxsize=64)
def _find_custom_environment_code(name: str) -> tuple[object, ...]:
    """Return the classes of a custom environment and its wrappers, and the module in ``module:NAME``."""
    world: Any = create_environment(name)
    module, colon, _ = name.partition(":")
    found: list[object] = [sys.modules[module]] if colon else []
    while world is not None:
        if type(world).__module__.partition(".")[0] != "gymnasium":
            found.append(type(world))
        world = None if world is world.unwrapped else world.env
    return tuple(found)


_ENTRIES = ("seen", "after", "actions", "rewards", "ended")


@dataclass(frozen=True)
class Transitions:
    """A batch of n transitions of an environment: observations, actions, rewards and next observations.

    Observations are [n, numbers]; actions (int64) and rewards are [n]. The last field [n] is 1 where a terminal state
    ended the episode, else 0.
    """

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    after: Tensor
    ended: Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device) -> Transitions:
        return Transitions(*(tensor.to(device) for tensor in vars(self).values()))


class Memory:
    """The replay memory, which stores the last `capacity` transitions."""

    def __init__(self, capacity: int, numbers: int) -> None:
        self.capacity = capacity
        self.count, self._next = 0, 0
        # NumPy writes few numbers faster than torch; arrays and tensors share their memory.
        self._arrays: dict[str, NDArray[Any]] = {
            "seen": np.zeros((capacity, numbers), np.float32),
            "after": np.zeros((capacity, numbers), np.float32),
            "actions": np.zeros(capacity, np.int64),
            "rewards": np.zeros(capacity, np.float32),
            "ended": np.zeros(capacity, np.float32),
        }
        self._tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}

    def add(
        self,
        seen: NDArray[np.float32],
        actions: Sequence[int],
        rewards: NDArray[np.float32],
        after: NDArray[np.float32],
        ended: NDArray[np.bool_],
    ) -> None:
        """Store transitions; every call must have the same number of transitions, a divisor of `capacity`."""
        first, last = self._next, self._next + len(actions)
        arrays = self._arrays
        arrays["seen"][first:last] = seen
        arrays["after"][first:last] = after
        arrays["actions"][first:last] = actions
        arrays["rewards"][first:last] = rewards
        arrays["ended"][first:last] = ended
        self._next = last % self.capacity
        self.count = min(self.count + len(actions), self.capacity)

    def select_rows(self, rows: Tensor) -> Transitions:
        """Return the transitions at the positions `rows`, int64 [n]."""
        return Transitions(**{name: tensor.index_select(0, rows) for name, tensor in self._tensors.items()})

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the stored transitions."""
        found = {name: self._tensors[name][: self.count].clone() for name in _ENTRIES}
        return found | {"next": torch.tensor(self._next)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the transitions from `state`, a result of the method `state`."""
        self.count, self._next = len(state["actions"]), int(state["next"])
        for name in _ENTRIES:
            self._tensors[name][: self.count] = state[name]


TARGET = "target/"


class Learner(Session):
    """A training run by deep Q-learning, which first fills the replay memory by random actions.

    The state of a run has the entries ``target/NAME`` (weights of the target network), ``memory/…`` (replay memory) and
    ``worlds/…`` (environments); before the first step, the state is empty.
    """

    copies = TARGET

    def __init__(
        self,
        environment: str,
        sizes: tuple[int, int],
        learning: Learning,
        *,
        batch: int,
        total: int,
        seed: int,
        arithmetic: Arithmetic,
        acts: bool = True,
    ) -> None:
        """Create a training run.

        `sizes` are the numbers in an observation and the number of actions. The share of random actions falls over the
        `total` updates of the whole training. Unless the network `acts`, it learns only from the initial random
        transitions.
        """
        self._environment, self._seed, self._arithmetic = environment, seed, arithmetic
        self._learning, self._batch, self._acts = learning, batch, acts
        self._numbers, self._choices = sizes
        self._falls = learning.explore_for * total
        self._device = torch.device(arithmetic.device)
        self._started = False
        self._target: dict[str, Tensor] = {}

    def loss(self, model: nn.Module, batch: int) -> Tensor:
        """Act in the environments in step `batch`, and return the loss of a random batch from the replay memory."""
        step, learning = batch, self._learning
        parameters = {name_without_wrappers(name): parameter for name, parameter in model.named_parameters()}
        if not self._started:
            self._create_environments()
            rounds = learning.warmup // learning.copies
            for actions in torch.randint(self._choices, (rounds, learning.copies)).tolist():
                step_and_store(self._memory, self._environments, actions)
            self._target = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        with torch.no_grad():
            if self._acts:
                self._act_and_store(model, step)
            if step % learning.period == 0:
                for name, parameter in parameters.items():
                    self._target[name].lerp_(parameter, learning.blend)
            seen = self._memory.select_rows(torch.randint(self._memory.count, (self._batch,))).to(self._device)
            wanted = self._target_values(model, parameters, seen)
        return q_loss(self._action_values(model, seen.seen), seen.actions, wanted, learning.loss)

    def state(self) -> dict[str, Tensor]:
        if not self._started:
            return {}
        parts = {TARGET: self._target, "memory/": self._memory.state(), "worlds/": self._environments.state()}
        return {
            f"{prefix}{name}": tensor.detach().to("cpu", copy=True)
            for prefix, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._create_environments()
        target = _select_tensors_with_prefix(state, TARGET)
        self._target = {name: tensor.to(self._device, copy=True) for name, tensor in target.items()}
        self._memory.load_state(_select_tensors_with_prefix(state, "memory/"))
        self._environments.load_state(_select_tensors_with_prefix(state, "worlds/"))

    def _create_environments(self) -> None:
        learning = self._learning
        self._environments = Environments(self._environment, learning.copies, self._seed, learning.repeat)
        self._memory = Memory(learning.memory, self._numbers)
        self._started = True

    def _act_and_store(self, model: nn.Module, step: int) -> None:
        learning, environments = self._learning, self._environments
        fallen = step / self._falls if step < self._falls else 1.0
        explore = 1.0 + (learning.explore - 1.0) * fallen
        shape = (learning.moves, learning.copies)
        explored, at_random = torch.rand(shape) < explore, torch.randint(self._choices, shape)
        for by_chance, actions in zip(explored.tolist(), at_random.tolist(), strict=True):
            if not all(by_chance):
                seen = torch.from_numpy(environments.seen).to(self._device)
                best = self._action_values(model, seen).argmax(1).tolist()
                actions = [a if chance else b for chance, a, b in zip(by_chance, actions, best, strict=True)]
            step_and_store(self._memory, environments, actions)

    def _target_values(self, model: nn.Module, parameters: Mapping[str, Tensor], seen: Transitions) -> Tensor:
        """Return the targets [b]: the reward plus the target network's discounted value of the next observation."""
        best = self._action_values(model, seen.after).argmax(1, keepdim=True) if self._learning.double else None
        with _replace_weights_temporarily(parameters, self._target):
            values = self._action_values(model, seen.after)
        following = values.amax(1) if best is None else values.gather(1, best).squeeze(1)
        return seen.rewards + self._learning.gamma * following * (1 - seen.ended)

    def _action_values(self, model: nn.Module, seen: Tensor) -> Tensor:
        """Return the model's values of all actions for observations `seen`, float32 [n, actions]."""
        with self._arithmetic.autocast():
            values: Tensor = model(seen)
        return values.float()


def q_loss(values: Tensor, actions: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Return the mean loss between the values of the taken `actions` [b] and the target values `wanted` [b].

    `values` [b, actions] are those of all actions. `kind` selects the loss: ``huber``, or otherwise the squared error.
    """
    taken = values.gather(1, actions.unsqueeze(1)).squeeze(1)
    return F.smooth_l1_loss(taken, wanted) if kind == "huber" else F.mse_loss(taken, wanted)


def step_and_store(memory: Memory, environments: Environments, actions: list[int]) -> None:
    """Take an action in each environment, and store the transitions in `memory`."""
    before = environments.seen.copy()
    rewards, after, ended = environments.step(actions)
    memory.add(before, actions, rewards, after, ended)


@contextlib.contextmanager
def _replace_weights_temporarily(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the `with` block, let `parameters` use the data of `weights`, without copying."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _select_tensors_with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, under their names without the prefix."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


VERSION = 1
"""Version of training and evaluation, as part of keys of stored results; increased when results change."""

RETURN = Metric("return", unit="", higher_is_better=True, summary="iqm")

_COPIES = 8
"""Number of environments that give the batches for scores."""
_EXPLORED = 0.5
"""Share of random actions in the batches for scores."""


@dataclass(frozen=True)
class ScoreBatch:
    """A batch for pruning scores: observations [n, numbers], actions taken [n], and their target values [n]."""

    seen: Tensor
    actions: Tensor
    wanted: Tensor


class EnvironmentCourse(Course):
    """Trains and evaluates in an environment; an epoch has as many transitions as fit into the replay memory."""

    def __init__(self, environment: str, sizes: tuple[int, int], learning: Learning, acts: bool = True) -> None:
        """Create a course (training and evaluation of a task); for `sizes` and `acts` see `Learner`."""
        self.environment, self.numbers_and_choices, self.learning, self._acts = environment, sizes, learning, acts

    def sizes(self) -> dict[str, int]:
        return {"train": self.learning.memory, "validation": EPISODES, "test": EPISODES}

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Learner:
        """Return a new training run; raise `TaskError` for a recipe with augmentations or label smoothing."""
        if recipe.augment:
            raise TaskError(f"{self.environment} has no augmentation {recipe.augment[0]!r}: choose a recipe without it")
        if recipe.label_smoothing:
            raise TaskError("returns have no labels: leave label smoothing out (--recipe.label-smoothing 0)")
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
        """Return mean reward and mean length of `EPISODES` episodes that take the actions of highest value.

        Each split has its own episodes, with fixed seeds.
        """

        def choose_best_actions(seen: Numbers) -> list[int]:
            with arithmetic.autocast():
                values = model(torch.from_numpy(seen).to(arithmetic.device))
            if not bool(torch.isfinite(values).all()):  # argmax would take one of them for the best
                raise TrainingError(
                    f"the returns that the network expects in {self.environment} are not finite: its training"
                    " diverged; lower the learning rate or clip gradients (--recipe.lr, --recipe.clip)"
                )
            actions: list[int] = values.argmax(1).tolist()
            return actions

        environments = Environments(self.environment, EPISODES, mix_seeds("evaluate", split), self.learning.repeat)
        returns, lengths = environments.play(choose_best_actions)
        if not isfinite(found := float(returns.mean())):
            raise TrainingError(f"the mean return in {self.environment} is {found}: its rewards are no finite numbers")
        return {"return": found, "length": float(lengths.mean())}

    @torch.no_grad()
    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[ScoreBatch]:
        """Return `count` batches of transitions; half of the actions are random, the model chooses the others.

        The target of a transition is the reward plus the model's discounted value of the next observation.
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
            seen = memory.select_rows(rows).to(device)
            wanted = seen.rewards + self.learning.gamma * model(seen.after).amax(1) * (1 - seen.ended)
            found.append(ScoreBatch(seen.seen, seen.actions, wanted))
        return found

    def loss(self, model: nn.Module, batch: ScoreBatch) -> Tensor:
        return q_loss(model(batch.seen), batch.actions, batch.wanted, self.learning.loss)

    def count(self, batch: ScoreBatch) -> int:
        return len(batch.actions)

    def inputs(self, count: int) -> Tensor:
        """Return standard normal noise in the shape of `count` observations; this creates no environment."""
        return torch.randn(count, self.numbers_and_choices[0], generator=torch.Generator().manual_seed(0))

    def few(self, count: int) -> EnvironmentCourse:
        """Return a course with few random transitions, which are never replaced, to measure the cost of an update."""
        copies = self.learning.copies
        warmup = min(copies * -(-count // copies), self.learning.memory)
        return EnvironmentCourse(
            self.environment, self.numbers_and_choices, replace(self.learning, warmup=warmup), acts=False
        )


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
        """Return values that identify the task, including Gymnasium's version and a custom environment's source."""
        try:
            version = metadata.version("gymnasium")
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError("gymnasium", EXTRA, f"the environment {self.environment}") from error
        code = () if self.name in ENVIRONMENTS else _find_custom_environment_code(self.environment)
        return {
            "name": self.name,
            "version": VERSION,
            "environment": self.environment,
            "library": f"gymnasium {version}",
            **({"source": digest_defining_source(*code)} if code else {}),
            "learning": asdict(self.learning),
            **models.network_key(self.model),
        }

    def build(self) -> nn.Module:
        shape, choices = self._input_shape_and_action_count
        return models.build(self.model, shape=shape, classes=choices)

    def narrower(self, parameters: int) -> str | None:
        shape, choices = self._input_shape_and_action_count
        return models.narrower(self.model, shape=shape, classes=choices, parameters=parameters)

    def course(self, data: Path | None = None) -> EnvironmentCourse:
        return EnvironmentCourse(self.environment, _sizes(self.environment), self.learning)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        return self.course().inputs(count)

    @property
    def _input_shape_and_action_count(self) -> tuple[tuple[int, int, int], int]:
        """Return the shape of an observation as an image of 1x1 pixels, (numbers, 1, 1), and the number of actions."""
        numbers, choices = _sizes(self.environment)
        return (numbers, 1, 1), choices


_sizes = lru_cache(maxsize=64)(count_observations_and_actions)


def create_task(spec: Spec) -> Reinforcement:
    """Create the task for the request `spec`, whose name is in `facts.ENVIRONMENTS` or is gym:ENVIRONMENT."""
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
