"""Chooses the tile of pixels and the number of warps of a launch by timing a few candidates for each shape.

Candidates are timed at the first call with a shape on a GPU, never while a CUDA graph is recorded; the result is cached
in the process. On a CPU the first candidate is used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Launch parameters of the group kernel."""

    pixels: int
    """Output pixels of a program."""
    columns: int
    """Retained columns of a step: 32 or 64, because tables are padded to 64."""
    warps: int
    stages: int
    """Steps of the gather that are in shared memory at once (pipeline stages)."""


T = TypeVar("T")

ROUNDS = 7
"""Timed runs of each candidate, alternating."""

_FILL = 132 * 2
"""Below this many programs smaller tiles are tried: two for each multiprocessor of an H100."""

_log = logging.getLogger(__name__)

_found: dict[Hashable, Config] = {}
_lock = threading.Lock()


def configs(tile: int, outputs: int, tiles: int) -> list[Config]:
    """Return the candidates for ``tiles`` tiles of ``tile`` rows at this many outputs, the most promising first."""
    found = {
        16: [Config(256, 64, 4, 3), Config(128, 64, 4, 4), Config(64, 64, 4, 5)],
        32: [Config(256, 64, 8, 3), Config(128, 64, 4, 4), Config(64, 64, 4, 5)],
        64: [Config(128, 64, 4, 3), Config(256, 64, 8, 4), Config(128, 64, 8, 4), Config(64, 64, 4, 4)],
        128: [Config(128, 64, 8, 3), Config(256, 64, 8, 4), Config(256, 32, 8, 4), Config(64, 64, 4, 4)],
    }[tile]
    few = [one for one in found if tiles * -(-outputs // one.pixels) < _FILL]
    if few and len(few) == len(found):  # too few programs with any candidate: use the smallest tiles
        return [*sorted(found, key=lambda one: one.pixels)[:2], Config(32, 64, 4, 5)]
    return [one for one in found if one not in few] + few[:1]


def choose(key: Hashable, tile: int, outputs: int, tiles: int, x: Tensor, run: Callable[[Config], None]) -> Config:
    """Return the fastest candidate for `key`: cached, timed with `run`, or the first where timing is not possible."""
    candidates = configs(tile, outputs, tiles)
    if x.device.type != "cuda":
        return _limit_pixels(candidates[0], outputs)
    key = (torch.cuda.get_device_name(x.device), key)
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        with _lock:
            if key not in _found:
                _found[key] = fastest(candidates, run, _seconds)
    return _found[key]


def fastest(
    candidates: list[Config], run: Callable[[Config], None], seconds: Callable[[Callable[[], None]], float]
) -> Config:
    """Return the candidate with the least median time over alternating rounds; skip those that cannot run."""
    times: dict[Config, list[float]] = {}
    errors: list[Exception] = []
    for config in candidates:
        try:
            run(config)  # compiles it, and shows whether it fits
        except Exception as error:  # out of shared memory or registers on a smaller GPU
            _log.info("%s is left out: %s", config, error)
            errors.append(error)
        else:
            times[config] = []
    if not times:
        raise errors[-1]
    for _ in range(ROUNDS):
        for config, taken in times.items():
            taken.append(seconds(lambda config=config: run(config)))  # type: ignore[misc]
    return min(times, key=lambda config: median(times[config]))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and its seconds on the current GPU, measured by CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    made = call()
    end.record()
    end.synchronize()
    return made, float(begin.elapsed_time(end)) / 1e3


def _seconds(call: Callable[[], None]) -> float:
    def four() -> None:
        for _ in range(4):
            call()

    return timed(four)[1] / 4


def _limit_pixels(config: Config, outputs: int) -> Config:
    """Halve the pixels of a program to about the number of outputs, because the interpreter computes them all."""
    pixels = config.pixels
    while pixels > 16 and pixels // 2 >= outputs:
        pixels //= 2
    return Config(pixels, config.columns, config.warps, config.stages)
