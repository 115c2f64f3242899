"""Latency of tickets by global magnitude: time / (their share of the multiplications x the dense network's time).

    python benchmarks/engine_tickets.py resnet-20 --length 100it --batch 64 1 --against eager openvino onnxruntime

Each network is trained on CIFAR-10 for so long (with `--store` it is done once), and pruned once by magnitude over all
layers, so that each layer keeps another share, down to nearly nothing. *Multiplications* are those of a forward pass.
Dense is the fastest dense engine in the same rounds, and beside it the same engine without a mask. With `--target avx2`
this engine has no others; `ONEDNN_MAX_CPU_ISA=AVX2` restricts torch and OpenVINO so, and nothing ONNX Runtime.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial

import torch
from common import Row, main, one_thread, parser
from training import trained

import ticketry as tk
from engine import compile_case
from ticketry.core.mask import Mask
from ticketry.lab.costs.meters import forward_flops, removed_shares
from ticketry_engine.bench.compare import compare, time_saved_against
from ticketry_engine.bench.dense_engines import Contender, Sparse, engine_names, rivals
from ticketry_engine.bench.timing import Case, Timing

NETWORKS = ("resnet-20", "resnet-18", "vgg-16", "conv-4", "resnet-32")
TARGETS = {64: 1.25, 1: 1.4}
"""Batch -> the ratio to reach."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    timing = Timing(rounds=2 if arguments.quick else arguments.rounds, clock=arguments.clock)
    rows = []
    for name in arguments.networks:
        model = trained(name, arguments).eval().requires_grad_(False)
        if arguments.train:
            continue
        masks = {f"{density:.0%} kept": tk.prune(model, density, score="magnitude") for density in arguments.density}
        for batch in arguments.batch:
            rows += rows_of(name, model, masks, batch, arguments, timing)
    return rows


def rows_of(
    name: str,
    model: torch.nn.Module,
    masks: dict[str, Mask],
    batch: int,
    arguments: argparse.Namespace,
    timing: Timing,
) -> list[Row]:
    """A network at one batch, under all masks."""
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    case = Case(model, (x,), "fp32", 1)
    fast = partial(compile_case, target=arguments.target)
    contenders: list[Contender] = [*rivals(arguments.against), Sparse(fast, "no mask")]
    for told, mask in masks.items():
        contenders.append(Sparse(fast, told, model=mask.apply_(copy.deepcopy(model))))
    found = compare(case, contenders, timing, say=lambda text: None)
    base = found.fastest
    assert base is not None
    own = next(row for row in found.times if row.engine == "no mask")
    rows = []
    for told, mask in masks.items():
        row = next(row for row in found.times if row.engine == told)
        share, saved = parse_share(model, mask, x[:2]), time_saved_against(row, base, timing)
        within = 1 - time_saved_against(row, own, timing).saved
        kept = sorted(float(flags.float().mean()) for flags in mask.values())
        rows.append(
            Row(
                f"{name}, batch {batch}, global magnitude, {told}: time / share of multiplications",
                (1 - saved.saved) / share,
                "",
                (1 - saved.high) / share,
                (1 - saved.low) / share,
                target=TARGETS.get(batch),
                how=f"time / {base.engine} {1 - saved.saved:.3f}, / no mask {within:.3f}, multiplications {share:.3f};"
                f" layers keep {kept[0]:.1%} to {kept[-1]:.1%}; {base.engine} {1e3 * (base.seconds or 0):.4g} ms",
                details={"share": share, "own": within, "kept": kept, "cpu": row.cpu, "wall": row.wall},
            )
        )
    medians = [1 - time_saved_against(own, base, timing).saved]
    rows.append(Row(f"{name}, batch {batch}, no mask / {base.engine}", statistics.median(medians), target=1.0))
    return rows


def parse_share(model: torch.nn.Module, mask: Mask, x: torch.Tensor) -> float:
    """Return the share of the MACs of a forward pass that the mask retains."""
    twin = copy.deepcopy(model).requires_grad_(True)
    flops = forward_flops(mask.parameters(twin), lambda: twin(x))
    return flops.left(removed_shares(mask)) / flops.dense


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("networks", nargs="*", default=list(NETWORKS))
    made.add_argument("--length", dest="trained", default="100it", metavar="LENGTH", help="of the training")
    made.add_argument("--store", help="folder of what is trained; by default a temporary one")
    made.add_argument("--train", action="store_true", help="train, and time nothing")
    made.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1])
    made.add_argument("--batch", type=int, nargs="+", default=[64, 1])
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    made.add_argument("--target", choices=("host", "avx2", "generic"), default="host", help="of the kernels")
    made.add_argument("--against", nargs="+", choices=engine_names(), help="dense engines; all by default")
    main("engine_tickets", measure, made)
