"""Replay memory: the last transitions, in a ring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ENTRIES = ("seen", "after", "actions", "rewards", "ended")


@dataclass(frozen=True)
class Transitions:
    """What was seen [n, numbers], the action taken int64 [n], the reward [n], what was seen after [n, numbers], and 1
    where the episode ended by itself, else 0 [n]."""

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
    """Holds the last `capacity` transitions, which come several at a time."""

    def __init__(self, capacity: int, numbers: int) -> None:
        self.capacity = capacity
        self.count, self._next = 0, 0
        # Written to through NumPy, which takes a fraction of the time for few numbers; both see the same memory.
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
        """Remember transitions; `capacity` is a multiple of their number, which is always the same."""
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
        """The transitions in those places, int64 [n]."""
        return Transitions(**{name: tensor.index_select(0, rows) for name, tensor in self._tensors.items()})

    def state(self) -> dict[str, Tensor]:
        """A copy of what is in it."""
        found = {name: self._tensors[name][: self.count].clone() for name in _ENTRIES}
        return found | {"next": torch.tensor(self._next)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.count, self._next = len(state["actions"]), int(state["next"])
        for name in _ENTRIES:
            self._tensors[name][: self.count] = state[name]
