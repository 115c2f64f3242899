"""What reads the examples of a split that does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor


class Reader(Protocol):
    """Reads examples from disk when they are asked for, so that a split need not fit into memory."""

    @property
    def workers(self) -> int:
        """Processes that read ahead of training; 0 reads in the process that trains."""

    @property
    def batch(self) -> int:
        """Examples that fit into memory at once, for evaluation."""

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Those of a recipe's that are done while reading, before all others; the rest is left to `Task.augment`."""

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """What returns the stored inputs [b, ...] of `rows` [b] when it is called, in this process or another.

        It goes to worker processes with every batch, so it must be small and can be pickled. What it returns is a
        function of the arguments alone: `augment` names some of `augmentations`, and all their draws come from `seed`
        and an example's position in the batch, which is `first` for the first of `rows`. `first` is given only where
        several devices train one network, and each reads its part of the batch: a reader without it reads for one.
        A `TicketryError` that it raises reaches the user.
        """


@runtime_checkable
class Sharded(Protocol):
    """What a `Reader` has besides, if its examples lie in shards that are best read one after the other."""

    @property
    def window(self) -> int:
        """Shards that are mixed: an epoch reads from no more of them at a time."""

    def shards(self, rows: Tensor) -> Tensor:
        """int64 [b]: the number of the shard of each of `rows` [b], from 0 on."""
