"""Deep Q-learning: the network chooses actions, and learns from the transitions in a replay memory.

Mnih et al., "Human-level control through deep reinforcement learning" (2015), algorithm 1, with several copies of the
environment; optionally with the targets of van Hasselt, Guez & Silver, "Deep Reinforcement Learning with Double
Q-learning" (2016).

The target network is not a module but a copy of the weights: the network itself is called with these weights. So masks,
removed units and gates of the network apply to the target network too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.core.scope import normal_name
from ticketry.tasks.facts import Learning
from ticketry.tasks.reinforcement.environments import Environments
from ticketry.tasks.task import Arithmetic, Session

_ENTRIES = ("seen", "after", "actions", "rewards", "ended")


@dataclass(frozen=True)
class Transitions:
    """Transitions of an environment: observations, actions, rewards and next observations.

    Shapes are [n, numbers] for observations and [n] for actions (int64) and rewards. The last field [n] is 1 where a
    terminal state ended the episode, else 0.
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
    """The replay memory: the last `capacity` transitions."""

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
        """Store transitions: always the same number per call, a divisor of `capacity`."""
        first, last = self._next, self._next + len(actions)
        arrays = self._arrays
        arrays["seen"][first:last] = seen
        arrays["after"][first:last] = after
        arrays["actions"][first:last] = actions
        arrays["rewards"][first:last] = rewards
        arrays["ended"][first:last] = ended
        self._next = last % self.capacity
        self.count = min(self.count + len(actions), self.capacity)

    def take(self, rows: Tensor) -> Transitions:
        """Return the transitions at the positions `rows`, int64 [n]."""
        return Transitions(**{name: tensor.index_select(0, rows) for name, tensor in self._tensors.items()})

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the stored transitions."""
        found = {name: self._tensors[name][: self.count].clone() for name in _ENTRIES}
        return found | {"next": torch.tensor(self._next)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of `state`."""
        self.count, self._next = len(state["actions"]), int(state["next"])
        for name in _ENTRIES:
            self._tensors[name][: self.count] = state[name]


TARGET = "target/"


class Learner(Session):
    """A training run by deep Q-learning, which first fills the replay memory by random actions.

    The state of a run has the entries ``target/NAME`` (weights), ``memory/…`` and ``worlds/…``; before the first step,
    the state is empty.
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

        Args:
            environment: name of the environment in Gymnasium.
            sizes: how many numbers an observation has, and how many actions there are.
            batch: number of transitions of an update.
            total: number of updates of the whole training, over which the share of random actions falls.
            seed: seed of all episodes.
            acts: whether the network acts; if not, it learns only from the initial random transitions.
        """
        self._environment, self._seed, self._arithmetic = environment, seed, arithmetic
        self._learning, self._batch, self._acts = learning, batch, acts
        self._numbers, self._choices = sizes
        self._falls = learning.explore_for * total
        self._device = torch.device(arithmetic.device)
        self._started = False
        self._target: dict[str, Tensor] = {}

    def loss(self, model: nn.Module, batch: int) -> Tensor:
        """Act in the environments, and then return the loss of a random batch from the replay memory.

        Args:
            batch: number of the training step.
        """
        step, learning = batch, self._learning
        parameters = {normal_name(name): parameter for name, parameter in model.named_parameters()}
        if not self._started:
            self._start(parameters)
        with torch.no_grad():
            if self._acts:
                self._act(model, step)
            if step % learning.period == 0:
                for name, parameter in parameters.items():
                    self._target[name].lerp_(parameter, learning.blend)
            seen = self._memory.take(torch.randint(self._memory.count, (self._batch,))).to(self._device)
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
        target = _select_prefix(state, TARGET)
        self._target = {name: tensor.to(self._device, copy=True) for name, tensor in target.items()}
        self._memory.load_state(_select_prefix(state, "memory/"))
        self._environments.load_state(_select_prefix(state, "worlds/"))

    def _create_environments(self) -> None:
        learning = self._learning
        self._environments = Environments(self._environment, learning.copies, self._seed, learning.repeat)
        self._memory = Memory(learning.memory, self._numbers)
        self._started = True

    def _start(self, parameters: Mapping[str, Tensor]) -> None:
        self._create_environments()
        fill_randomly(self._memory, self._environments, self._choices, self._learning.warmup)
        self._target = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def _act(self, model: nn.Module, step: int) -> None:
        learning, environments = self._learning, self._environments
        fallen = step / self._falls if step < self._falls else 1.0
        explore = 1.0 + (learning.explore - 1.0) * fallen
        shape = (learning.moves, learning.copies)
        explored, at_random = torch.rand(shape) < explore, torch.randint(self._choices, shape)
        for by_chance, actions in zip(explored.tolist(), at_random.tolist(), strict=True):
            if not all(by_chance):
                best = (
                    self._action_values(model, torch.from_numpy(environments.seen).to(self._device)).argmax(1).tolist()
                )
                actions = [a if chance else b for chance, a, b in zip(by_chance, actions, best, strict=True)]
            step_and_store(self._memory, environments, actions)

    def _target_values(self, model: nn.Module, parameters: Mapping[str, Tensor], seen: Transitions) -> Tensor:
        """Return the targets [b]: reward + discounted value that the target network gives the next observation."""
        best = self._action_values(model, seen.after).argmax(1, keepdim=True) if self._learning.double else None
        with _replaced_weights(parameters, self._target):
            values = self._action_values(model, seen.after)
        following = values.amax(1) if best is None else values.gather(1, best).squeeze(1)
        return seen.rewards + self._learning.gamma * following * (1 - seen.ended)

    def _action_values(self, model: nn.Module, seen: Tensor) -> Tensor:
        """Return the values of all actions, float32 [n, actions]."""
        with self._arithmetic.autocast():
            values: Tensor = model(seen)
        return values.float()


def q_loss(values: Tensor, actions: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Return the mean loss of the values [b, actions] at the taken actions [b], against target values [b]."""
    taken = values.gather(1, actions.unsqueeze(1)).squeeze(1)
    return F.smooth_l1_loss(taken, wanted) if kind == "huber" else F.mse_loss(taken, wanted)


def fill_randomly(memory: Memory, environments: Environments, choices: int, count: int) -> None:
    """Store `count` transitions; each action is one of `choices` actions, drawn from torch's global generator."""
    copies = len(environments.seen)
    for actions in torch.randint(choices, (count // copies, copies)).tolist():
        step_and_store(memory, environments, actions)


def step_and_store(memory: Memory, environments: Environments, actions: list[int]) -> None:
    """Take an action in each environment, and store the transitions in `memory`."""
    before = environments.seen.copy()
    rewards, after, ended = environments.step(actions)
    memory.add(before, actions, rewards, after, ended)


@contextlib.contextmanager
def _replaced_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, replace the data of `parameters` by `weights`, without copying."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, under their names without the prefix."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
