"""GFLOP/s of the sparse CPU kernels, layer by layer, beside torch's dense convolution: one thread, fp32, hot.

    python benchmarks/kernels.py [--images 16 8 1] [--density 0.26 0.1] [--rows 1 4 12 32] [--layers R18.1 VGG.5]

Rates count the kept weights alone; `saved` is the share of the dense time that the sparse kernel does not take. Times
are CPU times of the thread (others on the machine do not count), medians of alternating rounds; `estimate` is the
planner's input. Masks are synthetic: random columns for sets of `rows` rows that are scattered over the layer (1:
unstructured).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar import Geometry, Planes, conv, estimate_cost, scratch_bytes
from ticketry_engine.kernels.program import BlockSpec, Program
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Convolution

LAYERS = {
    # of ResNet-18 and VGG-16 for CIFAR, and of ResNet-50: inputs, outputs, size of x, kernel, stride
    "R18.1": (64, 64, 32, 3, 1),
    "R18.2s": (64, 128, 32, 3, 2),
    "R18.2d": (64, 128, 32, 1, 2),
    "R18.2": (128, 128, 16, 3, 1),
    "R18.3": (256, 256, 8, 3, 1),
    "R18.4": (512, 512, 4, 3, 1),
    "VGG.2": (128, 128, 16, 3, 1),
    "VGG.5": (512, 512, 2, 3, 1),
    "R50.1": (64, 256, 56, 1, 1),
    "R50.3": (1024, 256, 14, 1, 1),
    "R50.4": (512, 512, 7, 3, 1),
}


def main() -> None:
    options = argparse.ArgumentParser(description="GFLOP/s of the sparse CPU kernels, layer by layer.")
    options.add_argument("--images", type=int, nargs="+", default=[16, 8, 1])
    options.add_argument("--density", type=float, nargs="+", default=[0.26, 0.1])
    options.add_argument("--rows", type=int, nargs="+", default=[1, 4, 12, 32])
    options.add_argument("--layers", nargs="+", default=list(LAYERS))
    options.add_argument("--target", default="host")
    options.add_argument("--halo", action="store_true", help="planes with a halo, also for fewer than 16 images")
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    torch.set_num_threads(1)
    print("layer    images density rows   GFLOP/s      ms  estimate  dense ms  saved %  build ms")
    for name in given.layers:
        for images in given.images:
            for density in given.density:
                for rows in given.rows:
                    measure(name, images, density, rows, given.target, given.rounds, given.halo or images >= 16)


def measure(name: str, images: int, density: float, rows: int, where: str, rounds: int, halo: bool) -> None:
    inputs, outputs, size, kernel, stride = LAYERS[name]
    generator = np.random.default_rng(0)
    kept = generator.random((-(-outputs // rows), inputs * kernel * kernel)) < density
    kept = np.repeat(kept, rows, axis=0)[:outputs][generator.permutation(outputs)]
    weight = (kept * generator.standard_normal(kept.shape)).astype(np.float32).reshape(outputs, inputs, kernel, kernel)
    begin = time.thread_time()
    program, estimate = _program(weight, images, size, stride, where, halo)
    build = time.thread_time() - begin
    dense = torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)
    value = torch.randn(images, inputs, size, size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        sparse, full = alternate([lambda: program.run(images, []), lambda: dense(value)], rounds)
    flops = 2 * np.count_nonzero(weight) * images * (size // stride) ** 2
    print(
        f"{name:8} {images:6} {density:7} {rows:4} {flops / sparse / 1e9:9.0f} {sparse * 1e3:7.3f}"
        f" {estimate / 1e6:9.3f} {full * 1e3:9.3f} {100 * (1 - sparse / full):8.1f} {build * 1e3:9.0f}",
        flush=True,
    )


def _program(weight: np.ndarray, images: int, size: int, stride: int, where: str, halo: bool) -> tuple[Program, float]:
    """One layer, its planes with the halo that it needs or without any, and what it is estimated to take."""
    outputs, inputs, kernel, _ = weight.shape
    processor = target(where)
    around = kernel // 2 if halo else 0
    before, after = (Geometry.build(extent, extent, around, images) for extent in (size, size // stride))
    x = Planes.from_offset(before, inputs, 64)
    y = Planes.from_offset(after, outputs, 64 + inputs * before.bytes)
    end = 64 + inputs * before.bytes + outputs * after.bytes
    layer = Convolution(weight, stride=(stride, stride), padding=(kernel // 2, kernel // 2), act="relu")
    spec = BlockSpec(processor, images, lambda _: end)
    ops = conv(x, y, layer, None, spec)
    size = end + scratch_bytes(x, y, layer, spec)
    return Program(ops, images, size, Library(processor)), estimate_cost(x, y, layer, spec)


def alternate(calls: list[Callable[[], object]], rounds: int, least: float = 0.005) -> list[float]:
    """Return median CPU seconds of each call over alternating rounds, each long enough to measure."""
    counts = []
    for call in calls:
        begin = time.thread_time()
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
