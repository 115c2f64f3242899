"""Order the training data, and read batches from memory, or ahead of time from disk.

The order depends only on a seed and the epoch, so that the batch of any step is known without earlier steps.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ticketry.errors import RunnerError, TicketryError
from ticketry.lab.process import (
    block_signals,
    choose_start_context,
    exit_when_parent_exits,
    ignore_signals_in_data_loader,
)
from ticketry.tasks.task import Sharded, Split, place_of_part
from ticketry_engine.support.seeds import generator, mix_seeds


def steps_per_epoch(examples: int, batch: int) -> int:
    """Return the number of batches in an epoch; the last batch may be smaller than the others."""
    return -(-examples // batch)


class DataOrder:
    """Determines the examples in the batch of any step, by a random permutation that depends on seed and epoch.

    If the examples are stored in shards (`tasks.task.Sharded`), the order of the shards is random, and the examples of
    `window` successive shards are mixed. So an epoch reads each shard once, and needs `window` shards at a time.

    Args:
        shards: int64 [examples], the number of the shard that contains each example; None without shards.
    """

    def __init__(self, seed: int, examples: int, batch: int, *, shards: Tensor | None = None, window: int = 1) -> None:
        self._seed, self._examples, self._batch = seed, examples, batch
        # Numbered without gaps, since a split may have no examples in some shards of its source.
        self._shards = None if shards is None else torch.unique(shards, return_inverse=True)[1]
        self._window, self._per_epoch, self._epoch = window, steps_per_epoch(examples, batch), -1
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Return the example indices of step `step` (from 0): int64 [at most batch]."""
        epoch, index = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle_epoch(epoch), epoch
        return self._order[index * self._batch : (index + 1) * self._batch]

    def _shuffle_epoch(self, epoch: int) -> Tensor:
        order = torch.randperm(self._examples, generator=generator(self._seed, "order", epoch))
        if self._shards is None:
            return order
        place = torch.randperm(int(self._shards.max()) + 1, generator=generator(self._seed, "shards", epoch))
        # A stable sort by windows leaves a uniformly random permutation within each window.
        return order[torch.sort(place[self._shards[order]] // self._window, stable=True).indices]


def part_of_batch(batch: Tensor, rank: int, world: int) -> Tensor:
    """Return the examples of `batch` that process `rank` of `world` trains; sizes of parts differ by at most 1."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}")
    place = place_of_part(len(batch), rank, world)
    return batch[place.first : place.first + place.own]


def build_data_order(split: Split, seed: int, batch: int) -> DataOrder:
    """Return the order in which the examples of a split are trained."""
    reader: object = split.reader
    shards = reader.shards(split.inputs) if isinstance(reader, Sharded) else None
    window = reader.window if isinstance(reader, Sharded) else 1
    return DataOrder(seed, len(split), batch, shards=shards, window=window)


_log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
"""Inputs as the data set stores them, and targets, both on the training device."""
Batches = Generator[Batch, None, None]
Request = Callable[[], Tensor]

EVALUATED = 500
"""Number of examples in a batch for evaluation, if the examples are in memory."""
_AHEAD = 2
"""Number of batches that each data-loading process reads ahead."""


def batches(
    split: Split,
    examples: Callable[[int], Tensor],
    steps: Sequence[int],
    device: str,
    *,
    augment: tuple[str, ...] = (),
    seed: int = 0,
    first: Callable[[int], int] | None = None,
) -> Batches:
    """Yield the batches of `steps`; if the split is on disk, processes read batches ahead of time.

    The processes end when the iterator is closed.

    Args:
        examples: returns, for a step, the indices of its examples in the split: int64 [b].
        augment: names of augmentations that are applied while reading, from `Reader.augmentations`.
        seed: seed of the augmentations, which also depend on the step and on an example's position in the batch.
        first: returns, for a step, the position in the batch of the first example; needed if `examples` returns only a
            part of each batch.
    """
    if (reader := split.reader) is None:
        inputs, targets = split.inputs, split.targets
        home = inputs.device
        move = home.type != device  # computed once: a step of a LeNet takes 1 ms
        for step in steps:
            index = examples(step).to(home)
            batch = inputs.index_select(0, index), targets.index_select(0, index)
            yield (batch[0].to(device), batch[1].to(device)) if move else batch
        return
    pending: deque[Tensor] = deque()  # targets of requested batches

    def build_requests() -> Iterator[Request]:
        for step in steps:
            index = examples(step)
            pending.append(split.targets[index])
            place = {"first": first(step)} if first and augment else {}
            yield reader.request(split.inputs[index], augment, mix_seeds(seed, "read", step) if augment else 0, **place)

    answers = _read_ahead(build_requests(), min(reader.workers, len(steps)), pin=device == "cuda")
    try:
        for answer in answers:
            if isinstance(answer, TicketryError):
                raise answer
            yield answer.to(device, non_blocking=True), pending.popleft().to(device)
    finally:
        answers.close()


def batches_in_order(split: Split, device: str) -> Batches:
    """Yield all examples of a split once and in order, in batches for evaluation."""
    if split.reader is None:
        parts = (torch.split(tensor, EVALUATED) for tensor in (split.inputs, split.targets))
        for inputs, targets in zip(*parts, strict=True):
            yield inputs.to(device), targets.to(device)
        return
    rows = torch.split(torch.arange(len(split)), split.reader.batch)
    yield from batches(split, rows.__getitem__, range(len(rows)), device)


def _read_ahead(requests: Iterator[Request], workers: int, *, pin: bool) -> Generator[Any, None, None]:
    """Yield the result of each request in order, read by `workers` processes, or by this process if `workers` is 0.

    For a request that raised an error, yield a `TicketryError`.
    """
    if workers and multiprocessing.current_process().daemon:
        _log.warning(
            "this process may start none of its own, so that it reads examples itself, beside its training: the bits"
            " are the same, and steps take longer (workers of Dask that may: DASK_DISTRIBUTED__WORKER__DAEMON=False)"
        )
        workers = 0
    if not workers:
        yield from map(_Requests().__getitem__, requests)
        return
    with block_signals(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user chose the number
        loader = DataLoader(
            _Requests(),
            batch_size=None,  # a request is for a whole batch
            sampler=requests,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            pin_memory=pin,
            multiprocessing_context=choose_start_context([__name__, "PIL.Image"]),
            worker_init_fn=_prepare_reading_process,
            generator=torch.Generator(),  # otherwise it would advance the global one
        )
        answers = iter(loader)
    try:
        yield from answers
    except (RuntimeError, OSError, EOFError) as error:  # errors of requests arrive as answers
        raise RunnerError(
            f"a process that reads examples ended without an answer ({error}): it was killed, ran out of memory, or"
            " the script that started it is not guarded by `if __name__ == '__main__':`. What was finished is stored;"
            " the same command goes on from there (with the option workers=0 no process is started)"
        ) from error
    finally:
        del answers  # this ends the processes


class _Requests(Dataset[Any]):
    """Data set whose items are the results of read requests, computed in a data-loading process."""

    def __getitem__(self, request: Request) -> Any:
        try:
            return request()
        except TicketryError as error:  # not raised: the loader would wrap it into a traceback
            return error
        except Exception:
            return RunnerError(f"reading examples failed:\n{traceback.format_exc()}")


def _prepare_reading_process(worker: int) -> None:
    ignore_signals_in_data_loader()
    # Torch watches the parent process, which is the server that forks, not the training.
    exit_when_parent_exits()
