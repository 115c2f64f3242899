"""Microseconds and GB/s of operations over planes other than convolutions, beside torch's: one thread, fp32, hot.

    python benchmarks/kernels_other.py [--images 16 8 1] [--target host] [--only pool norm]

Bytes are those of inputs and outputs, each once; of attention, GFLOP/s of its two products instead. Times are CPU times
of the thread (others on the machine do not count), medians of alternating rounds; ours include a call of some 5 µs.
torch is given the layout it is faster with: channels last for pooling, features last for norms.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from kernels import alternate
from torch import Tensor
from torch.nn import functional as F

from ticketry_engine.kernels import planar
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar import Geometry, Planes
from ticketry_engine.kernels.program import BlockSpec, Op, Program
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Window


class Bench:
    """Rows of the table, for one number of images in a block."""

    def __init__(self, where: str, images: int, rounds: int) -> None:
        self.images, self.rounds = images, rounds
        self.library = Library(target(where))

    def values(self, *shapes: tuple[int, int, int, int]) -> list[Planes]:
        """Planes one behind the other for each (channels, height, width, halo)."""
        found, end = [], 0
        for channels, height, width, halo in shapes:
            found.append(Planes.from_offset(Geometry.build(height, width, halo, self.images), channels, end))
            end += channels * found[-1].geometry.bytes
        return found

    def row(
        self,
        label: str,
        values: Sequence[Planes],
        ops: list[Op],
        dense: Callable[[], object],
        flops: float = 0,
        tensors: Sequence[Tensor] = (),
    ) -> None:
        """Measure ours beside torch's; ``flops`` if the rate is of those."""
        end = max(int(value.offsets.max()) + value.geometry.bytes for value in values)
        program = Program(ops, self.images, end, self.library)
        addresses = [tensor.data_ptr() for tensor in tensors]
        with torch.inference_mode():
            ours, theirs = alternate([lambda: program.run(self.images, addresses), dense], self.rounds)
        sizes = [v.channels * v.geometry.height * v.geometry.width * self.images for v in values]
        work = flops or 4 * (sum(sizes) + sum(tensor.numel() for tensor in tensors))
        unit = "GFLOP/s" if flops else "GB/s"
        print(
            f"{label:24} {self.images:6} {ours * 1e6:9.1f} {work / ours / 1e9:7.1f} {unit:7} {theirs * 1e6:9.1f}"
            f" {theirs / ours:6.2f}",
            flush=True,
        )

    def move(self) -> None:
        for label, shape, last in [
            ("move 3x32x32", (3, 32, 32, 1), False),
            ("move 3x224x224", (3, 224, 224, 3), False),
            ("move 3x224x224 last", (3, 224, 224, 3), True),
            ("move 64x32x32", (64, 32, 32, 1), False),
            ("move 64x32x32 last", (64, 32, 32, 1), True),
            ("move 768x1x128 last", (768, 1, 128, 0), True),
        ]:
            (x,) = self.values(shape)
            t = torch.randn(self.images, *shape[:3])
            t = t.contiguous(memory_format=torch.channels_last) if last else t
            for name, move in (("load", planar.load_tensor), ("store", planar.store_tensor)):
                self.row(label.replace("move", name), [x], move(0, t.stride(), x), t.clone, tensors=[t])

    def pool(self) -> None:
        for label, channels, size, out, window in [
            ("max 2x2 /2", 64, 32, 16, (2, 2, 0)),
            ("max 3x3 /2", 64, 112, 56, (3, 2, 1)),
            ("max 3x3", 64, 32, 32, (3, 1, 1)),
            ("avg 3x3", 64, 32, 32, (3, 1, 1)),
        ]:
            x, y = self.values((channels, size, size, 1), (channels, out, out, 1))
            kernel, stride, padding = ((number, number) for number in window)
            t = torch.randn(self.images, channels, size, size).contiguous(memory_format=torch.channels_last)
            ours, theirs = (planar.max_pool, F.max_pool2d) if "max" in label else (planar.avg_pool, F.avg_pool2d)
            ops = ours(x, y, Window(kernel, stride, padding))
            self.row(f"{label} {channels}x{size}x{size}", [x, y], ops, lambda f=theirs, t=t, w=window: f(t, *w))
        for channels, size in ((512, 4), (2048, 7)):
            x, y = self.values((channels, size, size, 1), (channels, 1, 1, 0))
            t = torch.randn(self.images, channels, size, size)
            ops = planar.global_mean(x, y)
            self.row(f"mean {channels}x{size}x{size}", [x, y], ops, lambda t=t: t.mean((2, 3)))

    def elementwise(self) -> None:
        for channels, size in ((64, 32), (512, 4)):
            shape = (channels, size, size, 1)
            a, b, y, one = self.values(shape, shape, shape, (channels, 1, 1, 0))
            s, t = torch.randn(2, self.images, channels, size, size)
            few = torch.randn(self.images, channels, 1, 1)
            ones = np.ones(channels, np.float32)
            name = f"{channels}x{size}x{size}"
            self.row(f"add {name}", [a, b, y], planar.elementwise("add", a, b, y), lambda s=s, t=t: s + t)
            self.row(f"mul by one {name}", [a, y], planar.elementwise("mul", a, one, y), lambda s=s, t=few: s * t)
            self.row(f"relu {name}", [a, y], planar.apply_activation("relu", a, y), lambda s=s: F.relu(s))
            self.row(f"gelu {name}", [a, y], planar.apply_activation("gelu", a, y), lambda s=s: F.gelu(s))
            self.row(f"affine {name}", [a, y], planar.affine(a, y, ones, ones), lambda s=s: s * 2)

    def norm(self) -> None:
        for channels, height, width in ((768, 1, 128), (768, 1, 197), (96, 56, 56)):
            x, y = self.values(*[(channels, height, width, 0)] * 2)
            t = torch.randn(self.images, height, width, channels)
            name = f"{channels}x{height}x{width}"
            ops = planar.layer_norm(x, y, None, None, 1e-5)
            self.row(f"layer norm {name}", [x, y], ops, lambda t=t, c=channels: F.layer_norm(t, (c,)))
            self.row(f"softmax {name}", [x, y], planar.softmax(x, y), lambda t=t: t.softmax(-1))

    def attention(self) -> None:
        for heads, depth, tokens, causal in ((12, 64, 128, False), (12, 64, 197, False), (6, 32, 49, False)):
            values = self.values(*[(heads * depth, 1, tokens, 0)] * 4)
            tensors = [torch.randn(self.images, heads, tokens, depth) for _ in range(3)]
            ops = planar.attention(*values, heads, depth**-0.5, causal, BlockSpec(target()))
            self.row(
                f"attention {heads}x{tokens}x{depth}",
                values,
                ops,
                lambda tensors=tensors, causal=causal: F.scaled_dot_product_attention(*tensors, is_causal=causal),
                flops=4 * self.images * heads * tokens**2 * depth,
            )


def main() -> None:
    parts = ["move", "pool", "elementwise", "norm", "attention"]
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, nargs="+", default=[16, 8, 1])
    options.add_argument("--target", default="host")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--only", nargs="+", choices=parts, default=parts)
    given = options.parse_args()
    torch.set_num_threads(1)
    print(f"{'operation':24} images        µs    rate           torch µs  times")
    for images in given.images:
        bench = Bench(given.target, images, given.rounds)
        for part in given.only:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
