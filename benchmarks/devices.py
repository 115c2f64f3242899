"""Several devices on this machine: a step under DDP against one process, and pruning in parts under FSDP2.

**Step.** ResNet-18 on 32 x 32 images: two processes over gloo with one thread and half the batch each, against one
process with two threads and the whole batch, in turns, in float32 and channels_last, SGD with momentum, a mask held.
Two cores are needed. Norms are those of each process (as DDP has them), and once synchronised. Where the machine has
other work, two threads that wait for each other at every operation lose more of their wall time than two processes
that meet once a step: rows for one thread alone and for processor time show that share of a ratio.

**Pruning.** An MLP of ``--width`` squared weights a layer, global magnitude to a density of 0.1: two processes that
have half of it each (`fully_shard`) against one that has all. The peak is the highest resident memory of a fresh
process while it prunes, Python and torch included; masks are compared to the element.

**Training.** The same MLP, a few steps of Adam at a batch of 16 under a mask, a state stored on the way, and the
result: by the lab in one process, and by two that have half of it each (``--parallel fsdp``) or all of it (``ddp``).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import Row, load_average, main, parser, ratio_row, seconds_row
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import ticketry as tk
from ticketry.core.sharding import local_shard, shard_like
from ticketry.lab.store.store import Store
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.tasks import catalogue, models
from ticketry.tasks.task import Split, Splits

STEP_TARGET, MEMORY_TARGET = 1.0, 0.6
_VIEWS = {"gradient_as_bucket_view": True}
"""Options of DDP: buckets as views save a copy of each gradient."""
_LAB = {**_VIEWS, "find_unused_parameters": True}
_OWN = {**_LAB, "broadcast_buffers": False}
DESIGNS: dict[str, dict[str, Any]] = {
    "DDP, 2 ranks": _OWN,
    "DDP, 2 ranks, synchronised norms": _OWN,
    "DDP, 2 ranks, buffers sent each step": _LAB,
    "DDP, 2 ranks, static graph": {**_VIEWS, "static_graph": True, "broadcast_buffers": False},
    "DDP, 2 ranks, one bucket": {**_OWN, "bucket_cap_mb": 1024},
    "DDP, 2 ranks, buckets of 5 MB": {**_OWN, "bucket_cap_mb": 5},
    "DDP, 2 ranks, gradients copied": {"find_unused_parameters": True, "broadcast_buffers": False},
}
"""The first two are what the lab has, with either kind of norms; ``--designs`` without a name tries all."""
MB = 1 << 20


def measure(arguments: argparse.Namespace) -> list[Row]:
    parts = {"step": step_rows, "pruning": pruning_rows, "training": training_rows}
    return [row for name in arguments.only or parts for row in parts[name](arguments)]


# -- a step ------------------------------------------------------------------------------------------------------------


class Side:
    """Processes that make steps on request."""

    def __init__(self, kind: str, ranks: int, batch: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.orders = [context.Queue() for _ in range(ranks)]
        self.answers = context.Queue()
        self.processes = [
            context.Process(target=serve, args=(kind, rank, ranks, batch, folder / kind, order, self.answers))
            for rank, order in enumerate(self.orders)
        ]
        for process in self.processes:
            process.start()

    def seconds(self, steps: int) -> tuple[float, float]:
        """Return per step the wall time of the slowest process and the processor time of all."""
        for order in self.orders:
            order.put(steps)
        walls, processors = zip(*(self.answers.get(timeout=600) for _ in self.orders), strict=True)
        return max(walls) / steps, sum(processors) / steps

    def end(self) -> None:
        for order in self.orders:
            order.put(0)
        for process in self.processes:
            process.join(60)


def serve(kind: str, rank: int, ranks: int, batch: int, meet: Path, orders: Any, answers: Any) -> None:
    torch.set_num_threads(1 if "1 thread" in kind else 2 // ranks)
    torch.manual_seed(0)
    model: nn.Module = models.build("resnet-18", shape=(3, 32, 32), classes=10).to(memory_format=torch.channels_last)
    mask = tk.prune(model, 0.2)
    if ranks > 1:
        join(rank, ranks, meet)
        model = tk.devices.synchronise_norms(model) if "synchronised" in kind else model
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(model, **DESIGNS[kind])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images = torch.randn(batch // ranks, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (batch // ranks,))
    with tk.hold(model, mask):
        while steps := orders.get():
            if ranks > 1:
                dist.barrier()
            began, worked = time.perf_counter(), time.process_time()
            for _ in range(steps):
                optimizer.zero_grad()
                cross_entropy(model(images), targets).backward()
                optimizer.step()
            answers.put((time.perf_counter() - began, time.process_time() - worked))
    if ranks > 1:
        dist.destroy_process_group()


def join(rank: int, ranks: int, meet: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    limit = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks, timeout=limit)


def step_rows(arguments: argparse.Namespace) -> list[Row]:
    rounds, steps = (2, 1) if arguments.quick else (arguments.rounds, 1)
    alone = "one process, 2 threads"
    kinds = {alone: 1, "one process, 1 thread": 1}
    kinds |= dict.fromkeys(arguments.designs or DESIGNS, 2)
    with tempfile.TemporaryDirectory() as folder:
        sides = {kind: Side(kind, ranks, arguments.batch, Path(folder)) for kind, ranks in kinds.items()}
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        worked: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(rounds + 1):
            for kind, side in sides.items():
                wall, processor = side.seconds(steps)
                if turn:  # the first warms up
                    found[kind].append(wall)
                    worked[kind].append(processor)
        for side in sides.values():
            side.end()
    how = f"ResNet-18, 32 x 32, batch {arguments.batch}, float32, {rounds} rounds, load {load_average()}"
    rows = [seconds_row(f"step: {alone}", found[alone], how=f"wall time, {how}")]
    for kind in [kind for kind in kinds if kind != alone]:
        target = STEP_TARGET if kind.startswith("DDP") else None
        what = f"step: {kind} / {alone}"
        rows.append(ratio_row(what, found[kind], found[alone], target=target, how=f"wall time, {how}"))
        fastest = min(found[kind]) / min(found[alone])
        rows.append(Row(f"{what}, of the fastest rounds", fastest, target=target, how=f"wall time, {how}"))
        rows.append(ratio_row(what, worked[kind], worked[alone], how=f"processor time of all threads, {how}"))
    return rows


# -- pruning -----------------------------------------------------------------------------------------------------------


def weights(width: int, depth: int) -> nn.Sequential:
    """Layers without values."""
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))


@torch.no_grad()
def fill(model: nn.Sequential) -> None:
    """Fill each layer with values that do not depend on how it is sharded."""
    model.to_empty(device="cpu")
    for index, parameter in enumerate(model.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        local_shard(parameter).copy_(shard_like(values, parameter))


def prune_here(rank: int, ranks: int, width: int, depth: int, folder: Path) -> None:
    torch.set_num_threads(1)
    model = weights(width, depth)
    if ranks > 1:
        join(rank, ranks, folder / "meet")
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    fill(model)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of now
    before = memory("VmRSS")
    began = time.perf_counter()
    mask = tk.prune(model, 0.1)
    seconds = time.perf_counter() - began
    torch.save(
        {"peak": memory("VmHWM"), "before": before, "seconds": seconds, "digest": mask.digest},
        folder / f"{ranks}-{rank}.pt",
    )
    if ranks > 1:
        dist.destroy_process_group()


def memory(entry: str, process: int | str = "self") -> float:
    """MB of a process: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{entry}:"))
    return int(line.split()[1]) / 1024


def pruning_rows(arguments: argparse.Namespace) -> list[Row]:
    width = 512 if arguments.quick else arguments.width
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            mp.start_processes(
                prune_here, (ranks, width, arguments.depth, Path(folder)), nprocs=ranks, start_method="spawn"
            )
        alone, *two = (torch.load(Path(folder) / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    peak, before = "peak", "before"
    weight_mb = arguments.depth * width * width * 4 / MB
    how = (
        f"MLP {arguments.depth} x {width} x {width} ({weight_mb:.0f} MB in float32), density 0.1; one process"
        f" {alone['peak']:.0f} MB ({alone['before']:.0f} before), ranks"
        f" {' and '.join(f'{each[peak]:.0f} ({each[before]:.0f})' for each in two)}"
    )
    return [
        Row(
            "pruning under FSDP2: peak memory of a rank / of one process",
            max(each["peak"] for each in two) / alone["peak"],
            target=MEMORY_TARGET,
            how=how,
            details={"alone": alone, "ranks": two},
        ),
        Row(
            "pruning under FSDP2: ranks whose mask is not that of one process",
            sum(each["digest"] != alone["digest"] for each in two),
            target=0,
            how=how,
        ),
        Row(
            "pruning under FSDP2: time / one process",
            statistics.median(each["seconds"] for each in two) / alone["seconds"],
            how=f"{alone['seconds']:.1f} s alone, wall time, once",
        ),
    ]


# -- training ----------------------------------------------------------------------------------------------------------


class Wide(tk.Task):
    """A task of random data with an MLP of a given width: ``devices:Wide``."""

    name, metric = "wide", tk.Metric("loss", "", higher_is_better=False)
    recipe = tk.Recipe(length="4it", batch=16, optimizer="adam", lr=1e-4)

    def __init__(self, width: str = "512", depth: str = "4") -> None:
        self.width, self.depth = int(width), int(depth)

    def key(self) -> Mapping[str, object]:
        return {"name": self.name, "width": self.width, "depth": self.depth}

    def build(self) -> nn.Module:
        return nn.Sequential(*(nn.Linear(self.width, self.width, bias=False) for _ in range(self.depth)))

    def load(self, data: Path | None = None) -> Splits:
        made = torch.Generator().manual_seed(0)
        inputs = torch.randn(64, self.width, generator=made)
        return Splits(Split(inputs, inputs), Split(inputs[:16], inputs[:16]), Split(inputs[:16], inputs[:16]))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(outputs, targets, reduction="none").mean(1).sum()}

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        return {"loss": sums["loss"] / count}


class Peaks(Watch):
    """Records the highest and lowest resident memory of the ranks, or of this process, in MB."""

    def __init__(self) -> None:
        super().__init__(checkpoint_seconds=0.5)
        self.found: dict[int, float] = {}
        self.bare: dict[int, float] = {}

    def look(self) -> None:
        for number in [each.pid for each in active_children() if each.pid] or [os.getpid()]:
            with contextlib.suppress(OSError, ValueError):
                self.found[number] = memory("VmHWM", number)
                self.bare[number] = min(self.bare.get(number, float("inf")), memory("VmRSS", number))

    def is_stop_requested(self) -> bool:
        self.look()
        return False


def train_here(rank: int, parallel: str, width: int, depth: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = Store(folder / f"store-{parallel}")
    task = catalogue.get("devices:Wide", options={"width": str(width), "depth": str(depth)})
    with tk.Lab(store.paths.root, device="cpu", precision="fp32") as lab:
        kept = {f"{layer}.weight": torch.eye(width, dtype=torch.bool) for layer in range(depth)}
        segment = lab.segment(task, start=0, mask=tk.Mask(kept))
    if parallel:
        several = {"ranks": 2, "parallel": "fsdp" if parallel == "fsdp" else ""}
        segment = dataclasses.replace(segment, arithmetic=dataclasses.replace(segment.arithmetic, **several))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    watch = Peaks()
    if not parallel:
        watch.look()
    execute(store, None, segment, [2], watch)
    if not parallel:
        watch.look()
    peaks = sorted((peak, peak - watch.bare[process]) for process, peak in watch.found.items())
    record = store.load_result(segment.trajectory, segment.last)
    assert record is not None
    torch.save({"peaks": peaks, "loss": record["loss"][-1][1]}, folder / f"train-{parallel}.pt")


def training_rows(arguments: argparse.Namespace) -> list[Row]:
    width = 512 if arguments.quick else arguments.width
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for parallel in ("", "ddp", "fsdp"):
            mp.start_processes(train_here, (parallel, width, arguments.depth, Path(folder)), start_method="spawn")
            found[parallel] = torch.load(Path(folder) / f"train-{parallel}.pt")
    ((alone, alone_above),) = found[""]["peaks"]
    weight_mb = arguments.depth * width * width * 4 / MB
    how = (
        f"MLP {arguments.depth} x {width} x {width} ({weight_mb:.0f} MB in float32), Adam, batch 16, a mask, states"
        f" stored; one process {alone:.0f} MB, {alone_above:.0f} above what it had before"
    )
    rows = []
    for parallel in ("ddp", "fsdp"):
        ranks, target = found[parallel]["peaks"], MEMORY_TARGET if parallel == "fsdp" else None
        said = (
            f"{how}, ranks {' and '.join(f'{peak:.0f} ({above:.0f})' for peak, above in ranks)}; last loss"
            f" {found[parallel]['loss']:.6f}, alone {found['']['loss']:.6f}"
        )
        what = f"training under {parallel}, 2 ranks: peak memory of a rank / of one process"
        rows.append(Row(what, max(peak for peak, _ in ranks) / alone, target=target, how=said))
        above = max(above for _, above in ranks) / alone_above
        rows.append(Row(f"{what}, above Python and torch", above, target=target, how=said))
    return rows


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="*", choices=("step", "pruning", "training"), help="some of the three")
    made.add_argument("--designs", nargs="*", choices=DESIGNS, default=list(DESIGNS)[:2], help="settings of DDP")
    made.add_argument("--batch", type=int, default=128, help="the global batch")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--width", type=int, default=4096)
    made.add_argument("--depth", type=int, default=4)
    return made


if __name__ == "__main__":
    main("devices", measure, options())
