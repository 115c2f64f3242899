"""The order of the data: a pure function of (seed, epoch), so that any step's batch is known without its past."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.core.seeds import generator


def steps_per_epoch(examples: int, batch: int) -> int:
    """Batches in an epoch; the last one may be smaller."""
    return -(-examples // batch)


class DataOrder:
    """Batches of example indices for any step: each epoch is a permutation drawn from (seed, epoch)."""

    def __init__(self, seed: int, examples: int, batch: int) -> None:
        self._seed, self._examples, self._batch = seed, examples, batch
        self._per_epoch = steps_per_epoch(examples, batch)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """int64 [batch or fewer]: the examples of iteration `step`, counted from 0."""
        epoch, index = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(self._examples, generator=generator(self._seed, "order", epoch))
            self._epoch = epoch
        return self._order[index * self._batch : (index + 1) * self._batch]
