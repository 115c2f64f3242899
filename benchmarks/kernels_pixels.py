"""GFLOP/s of kernels over pixels, layer by layer, beside torch's dense convolution: one thread, hot.

    python benchmarks/kernels_pixels.py [--images 1 2 8] [--density 1 0.26 0.1] [--rows 48 32 16] [--layers R18.1 VGG.5]
    python benchmarks/kernels_pixels.py --precision bf16 [--pairs]

Rates count the kept weights alone, with all their taps, also where a kernel skips those that see only padding: so small
planes may exceed the peak, which is what a loop over registers reaches at that moment (clocks change with the load of
the machine). Times are CPU times of the thread, medians of alternating rounds. Masks are synthetic: random columns for
each group of rows; groups of 48 are left out where the layer has 64 outputs. In bf16 torch computes in bf16 too, and
the peak is that of pairs; with --pairs neighbouring inputs are kept or pruned together.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ticketry_engine.kernels import bfloat
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue, conv, estimate_cost
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.channels_last.group_conv import GroupConv
from ticketry_engine.kernels.emitter import Emitter
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import BlockSpec, Op, Program
from ticketry_engine.kernels.target import Target, target
from ticketry_engine.kernels.window import Convolution

ITEM = {"fp32": FLOAT, "bf16": HALF}
LAYERS = {
    # name: inputs, outputs, size of x, kernel, stride
    "stem": (3, 64, 32, 3, 1),
    "R18.1": (64, 64, 32, 3, 1),
    "R18.2s": (64, 128, 32, 3, 2),
    "R18.2d": (64, 128, 32, 1, 2),
    "R18.2": (128, 128, 16, 3, 1),
    "R18.3s": (128, 256, 16, 3, 2),
    "R18.3": (256, 256, 8, 3, 1),
    "R18.4s": (256, 512, 8, 3, 2),
    "R18.4": (512, 512, 4, 3, 1),
    "VGG.1": (64, 64, 32, 3, 1),
    "VGG.2": (128, 128, 16, 3, 1),
    "VGG.3": (256, 256, 8, 3, 1),
    "VGG.4": (512, 512, 4, 3, 1),
    "VGG.5": (512, 512, 2, 3, 1),
    "R50.1": (64, 256, 56, 1, 1),
    "R50.3": (1024, 256, 14, 1, 1),
    "R50.4": (512, 512, 7, 3, 1),
    "linear": (768, 3072, 11, 1, 1),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, nargs="+", default=[1, 2, 8])
    options.add_argument("--density", type=float, nargs="+", default=[1, 0.26, 0.1])
    options.add_argument("--rows", type=int, nargs="+", default=[48, 32, 16])
    options.add_argument("--layers", nargs="+", default=list(LAYERS))
    options.add_argument("--target", default="host")
    options.add_argument("--precision", choices=list(ITEM), default="fp32")
    options.add_argument("--pairs", action="store_true")
    options.add_argument("--rounds", type=int, default=11)
    given = options.parse_args()
    torch.set_num_threads(1)
    print(
        "layer  images density rows  GFLOP/s  % of peak      ms   dense ms  saved %  build ms  estimate / time  tiles"
    )
    for name in given.layers:
        for images in given.images:
            for density in given.density:
                for rows in given.rows:
                    if rows == 48 and LAYERS[name][1] == 64:
                        continue
                    measure(name, images, density, rows, given)


def measure(name: str, images: int, density: float, rows: int, given: argparse.Namespace) -> None:
    inputs, outputs, size, kernel, stride = LAYERS[name]
    generator = np.random.default_rng(0)
    groups = [np.arange(at, min(at + rows, outputs)) for at in range(0, outputs, rows)]
    weight = generator.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32)
    for group in groups:
        weight[group] *= draw_columns(weight.shape[1:], density, given.pairs, generator)
    processor, item = target(given.target), ITEM[given.precision]
    x = ChannelsLastValue(ChannelsLastGeometry.build(size, size, inputs, kernel // 2, item), 64)
    after = (size - 1) // stride + 1
    y = ChannelsLastValue(ChannelsLastGeometry.build(after, after, outputs, 1, item), 64 + x.geometry.bytes(images))
    begin = time.thread_time()
    layer = Convolution(weight, stride=(stride, stride), padding=(kernel // 2, kernel // 2), act="relu")
    spec = BlockSpec(processor, images)
    ops = conv(x, y, layer, None, spec)
    program = Program(ops, images, y.offset + y.geometry.bytes(images), Library(processor))
    build = time.thread_time() - begin
    estimate = estimate_cost(x, y, layer, spec) * images * 1e-9
    dense = torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
    kind = torch.float32 if item == FLOAT else torch.bfloat16
    dense = dense.to(kind)
    value = torch.randn(images, inputs, size, size, dtype=kind).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        top = _peak(processor, item == HALF)
        # Several blocks in one call, as in a whole network: a call from Python takes some microseconds.
        blocks = max(1, 16 // images)
        sparse, full, peak = alternate(
            [lambda: program.run(images * blocks, []), lambda: dense(value), lambda: top.run(1, [])], given.rounds
        )
        sparse /= blocks
    flops, top_flops = 2 * np.count_nonzero(weight) * images * after**2, Registers.flops(processor, item == HALF)
    kernels = [op.kernel for op in ops if isinstance(op.kernel, GroupConv)]
    tiles = [(kernel.loop_vectors, *vars(kernel.tile).values()) for kernel in kernels]
    print(
        f"{name:8} {images:4} {density:7} {rows:4} {flops / sparse / 1e9:8.0f}"
        f" {100 * flops / sparse / (top_flops / peak):9.0f} {sparse * 1e3:8.3f} {full * 1e3:10.3f}"
        f" {100 * (1 - sparse / full):8.1f} {build * 1e3:9.0f} {estimate / sparse:16.2f}  {tiles}",
        flush=True,
    )


@dataclass(frozen=True)
class Registers:
    """A loop of multiplications whose values all stay in registers."""

    pairs: bool
    """Whether pairs of bfloat16 are multiplied."""
    turns: int = 100_000
    values: int = 20

    @staticmethod
    def flops(where: Target, pairs: bool) -> float:
        return 2.0 * (1 + pairs) * Registers.turns * Registers.values * where.lanes

    def emit(self, name: str, where: Target) -> str:
        e, size = Emitter(name, where), 4 * where.lanes
        sums = [e.load(e.table(0), size * index) for index in range(self.values)]
        get = bfloat.load_pairs if self.pairs else Emitter.load
        a, b = (get(e, e.table(0), size * index) for index in range(2))
        with e.loop(0, self.turns, carried=sums) as turn:
            multiply = bfloat.multiply_pairs if self.pairs else Emitter.fma
            turn.next = [multiply(e, a, b, value) for value in turn.carried]
        for index, value in enumerate(turn.results):
            e.store(value, e.arena_pointer(size * index))
        return e.text()


@functools.cache
def _peak(where: Target, pairs: bool) -> Program:
    # Numbers with all their digits, as multiplying zeros takes less power and so a higher clock.
    numbers = np.random.default_rng(0).random(20 * where.lanes).astype(np.float32)
    return Program([Op(Registers(pairs), (numbers,))], 1, 1 << 12, Library(where))


def draw_columns(
    shape: tuple[int, ...], density: float, pairs: bool, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Flags of the columns [inputs, kernel...] that a group keeps."""
    if not pairs:
        return generator.random(shape) < density
    return np.repeat(generator.random((-(-shape[0] // 2), *shape[1:])) < density, 2, axis=0)[: shape[0]]


def alternate(calls: list[Callable[[], object]], rounds: int, least: float = 0.005) -> list[float]:
    """Return median CPU seconds of each call over alternating rounds, each long enough to measure."""
    counts = []
    for call in calls:
        call()
        begin, count = time.thread_time(), 0
        while time.thread_time() - begin < least:
            call()
            count += 1
        counts.append(count)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, taken in zip(calls, counts, times, strict=True):
            begin = time.thread_time()
            for _ in range(count):
                call()
            taken.append((time.thread_time() - begin) / count)
    return [float(np.median(taken)) for taken in times]


if __name__ == "__main__":
    main()
