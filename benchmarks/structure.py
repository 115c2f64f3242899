"""Groups of rows from unstructured masks: time, against the plain procedure, and what they cover; refill's time.

    python benchmarks/structure.py --data DATA [--steps 400 | --ticket FOLDER] [--only regroup coverage …]

Masks are of magnitude, 74 % sparse over all layers, of ResNet-18 for images of CIFAR's size after a short training
(`--steps` of 32 images, SGD with momentum, one cycle), so that rows have the structure that training gives; or those of
a ticket with trained weights. ResNet-50's weights are random: times hardly depend on them.

The plain procedure is that of the paper's published code, written down anew: element by element of a tensor, in loops
of Python, with its constants (8 parts, blocks of more than 16 rows in multiples of 32, as many columns as are 1.5 times
what every row has left outside), the column counted that is meant. hMETIS, which it calls, is not to be had: parts are
Mt-KaHyPar's, timed apart. It is measured on one layer of middle size, as its time grows with a layer's weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Row, main, one_thread, parser, ratio_row, seconds_row, timed
from torch import Tensor, nn

import ticketry as tk

SPARSITY = 0.74
ROWS = 16
MIDDLE = "blocks.5.conv2.weight"
"""The layer that the plain procedure is timed on: 256 outputs, 2,304 columns."""
LARGE = 64 * 576
"""Weights of a layer above which its coverage has to be higher than the paper's heuristic's."""
RESNET_18, RESNET_50, REFILL, FASTER = 10.0, 30.0, 2.0, 100.0
"""To reach: seconds, seconds, seconds, times."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    repeats = 1 if arguments.quick else 5
    subject: list[tuple[nn.Module, tk.Mask]] = []

    def trained() -> tuple[nn.Module, tk.Mask]:
        if not subject:
            subject.append(of_ticket(arguments) if arguments.ticket else of_training(arguments))
        return subject[0]

    parts: dict[str, Callable[[], list[Row]]] = {
        "regroup": lambda: regroup_times(trained(), repeats),
        "plain": lambda: against_plain(trained(), arguments.layer, repeats),
        "coverage": lambda: coverages(trained(), arguments.quick),
        "refill": lambda: refill_time(repeats),
    }
    return [row for name, part in parts.items() if name in (arguments.only or parts) for row in part()]


# -- what is regrouped -------------------------------------------------------------------------------------------------


def of_ticket(arguments: argparse.Namespace) -> tuple[nn.Module, tk.Mask]:
    ticket = tk.Ticket.load(arguments.ticket)
    model = ticket.apply(tk.task("cifar10", model=arguments.network).build(), "trained")
    return model, ticket.mask


def of_training(arguments: argparse.Namespace) -> tuple[nn.Module, tk.Mask]:
    """A network after a short training, and the mask of its weights of greatest magnitude."""
    task = tk.task("cifar10", model=arguments.network)
    data = task.load(arguments.data).train
    torch.manual_seed(0)
    model = task.build().to(memory_format=torch.channels_last).train()
    steps = 2 if arguments.quick else arguments.steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    order = torch.Generator().manual_seed(0)
    for step in range(steps):
        which = torch.randint(len(data.targets), (32,), generator=order)
        images = task.prepare(data.inputs[which]).to(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(images.flip(-1) if step % 2 else images), data.targets[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, tk.prune(model, sparsity=SPARSITY)


# -- time --------------------------------------------------------------------------------------------------------------


def regroup_times(subject: tuple[nn.Module, tk.Mask], repeats: int) -> list[Row]:
    large = tk.task("cifar10", model="resnet-50").build()
    rows = []
    for name, model, mask, target in (
        ("ResNet-18", *subject, RESNET_18),
        ("ResNet-50", large, tk.prune(large, sparsity=SPARSITY), RESNET_50),
    ):
        seconds = [timed(partial(tk.structure.regroup, model, mask, rows=ROWS)) for _ in range(repeats)]
        how = f"one thread, CPU time, groups of {ROWS}, {repeats} times"
        what = f"regroup of all layers, {name} at {mask.sparsity:.0%} sparsity"
        rows.append(seconds_row(what, seconds, target=target, how=how, details={"weights": mask.total}))
    return rows


def refill_time(repeats: int) -> list[Row]:
    model = tk.task("cifar10", model="resnet-50").build()
    mask = tk.prune(model, sparsity=SPARSITY)
    examples = torch.randn(2, 3, 32, 32)
    seconds = [timed(partial(tk.structure.refill, model, mask, examples)) for _ in range(repeats)]
    how = f"one thread, CPU time, coupled channels found each time, {repeats} times"
    return [seconds_row(f"refill, ResNet-50 at {SPARSITY:.0%} sparsity", seconds, target=REFILL, how=how)]


def against_plain(subject: tuple[nn.Module, tk.Mask], name: str, repeats: int) -> list[Row]:
    model, mask = subject
    if name not in mask:
        raise SystemExit(f"the mask has no layer {name!r}; it has {', '.join(mask)}")
    layer, kept = as_linear_layer(model.get_parameter(name).detach(), mask[name])
    matrix = (layer.weight.detach() * kept["weight"]).clone()
    plain = Plain()
    whole = timed(lambda: plain.regroup(matrix))
    ours = [timed(partial(tk.structure.regroup, layer, kept, rows=ROWS)) for _ in range(repeats)]
    rows, columns = matrix.shape
    details = {"layer": name, "rows": rows, "columns": columns, "density": kept.density}
    how = f"{name}, {rows} x {columns}, one thread, CPU time"
    loops = [whole - plain.partition_seconds] * repeats
    what = "the plain procedure's loops / regroup, same layer"
    return [
        ratio_row(what, loops, ours, at_least=FASTER, how=how, details=details),
        ratio_row(f"{what}, partition by Mt-KaHyPar included", [whole] * repeats, ours, how=how, details=details),
    ]


def as_linear_layer(weight: Tensor, kept: Tensor) -> tuple[nn.Linear, tk.Mask]:
    """Return a layer of a network as a linear layer, with its mask."""
    layer = nn.Linear(weight[0].numel(), len(weight), bias=False)
    layer.weight = nn.Parameter(weight.flatten(1).clone())
    return layer, tk.Mask({"weight": kept.flatten(1)})


class Plain:
    """The published procedure in loops over elements of a tensor."""

    def __init__(self) -> None:
        self.partition_seconds = 0.0

    def regroup(
        self, matrix: Tensor, parts: int = 8, ratio: float = 1.5, run: int = 32, least: int = 16
    ) -> list[tuple[list[int], list[int]]]:
        """Blocks of (rows, columns), written into a mask at the end as there."""
        rows = [i for i in range(len(matrix)) if any(matrix[i, j] != 0 for j in range(matrix.shape[1]))]
        columns = [j for j in range(matrix.shape[1]) if any(matrix[i, j] != 0 for i in rows)]
        edges = [[place for place, i in enumerate(rows) if matrix[i, j] != 0] for j in columns]
        blocks = []
        for part in self._partition(len(rows), edges, parts):
            members = [rows[place] for place in part]
            chosen = self._dense_columns(matrix, members, ratio)
            whole = len(members) // run * run
            pieces = [members[:whole], members[whole:]] if len(members) > run else [members]
            blocks += [(piece, chosen) for piece in pieces if piece and chosen and len(members) > least]
        kept = torch.zeros_like(matrix)
        for some, chosen in blocks:
            for i in some:
                for j in chosen:
                    kept[i, j] = 1
        return blocks

    def _dense_columns(self, matrix: Tensor, rows: list[int], ratio: float) -> list[int]:
        """The fewest columns, those of most weights first, that are `ratio` times what every row has in others."""
        counts = [sum(1 for i in rows if matrix[i, j] != 0) for j in range(matrix.shape[1])]
        order = sorted(range(matrix.shape[1]), key=lambda j: counts[j], reverse=True)
        left = [sum(1 for j in range(matrix.shape[1]) if matrix[i, j] != 0) for i in rows]
        for width, j in enumerate(order, start=1):
            for place, i in enumerate(rows):
                if matrix[i, j] != 0:
                    left[place] -= 1
            if all(width > ratio * rest for rest in left):
                return order[:width]
        return []

    def _partition(self, count: int, edges: list[list[int]], parts: int) -> list[list[int]]:
        import mtkahypar

        began = time.process_time()
        library = mtkahypar.initialize(1, print_warnings=False)
        context = library.context_from_preset(mtkahypar.PresetType.DEFAULT)
        context.set_partitioning_parameters(parts, 0.1, mtkahypar.Objective.KM1)
        shared = [edge for edge in edges if len(edge) > 1]
        of = library.create_hypergraph(context, count, len(shared), shared).partition(context).get_partition()
        self.partition_seconds = time.process_time() - began
        return [[place for place in range(count) if of[place] == part] for part in range(parts)]


# -- coverage ----------------------------------------------------------------------------------------------------------


def coverages(subject: tuple[nn.Module, tk.Mask], quick: bool) -> list[Row]:
    """Coverage of each layer, beside the heuristic, random groups and the null."""
    model, mask = subject
    names = [name for name, kept in mask.items() if not quick or kept.numel() <= LARGE]
    fits: dict[str, dict[str, tk.structure.LayerFit]] = {"similarity": {}, "paper": {}}
    seconds = dict.fromkeys(fits, 0.0)
    for name in names:
        layer, kept = as_linear_layer(model.get_parameter(name).detach(), mask[name])
        for method, found in fits.items():
            began = time.process_time()
            made = tk.structure.regroup(layer, kept, rows=ROWS, method=method)
            seconds[method] += time.process_time() - began
            (fit,) = tk.structure.coverage(layer, kept, made, null=method == "similarity").values()
            found[name] = fit
        print(name, *(f"{method} {found[name].coverage:.4f}" for method, found in fits.items()), flush=True)
    judged = [name for name in names if quick or mask[name].numel() > LARGE]
    ahead = {name: fits["similarity"][name].coverage - fits["paper"][name].coverage for name in judged}
    whole = {method: tk.structure.together(found) for method, found in fits.items()}
    details = {
        "layers": {method: [fit.as_json() for fit in found.values()] for method, found in fits.items()},
        "seconds": seconds,
    }
    how = f"groups of {ROWS}, same number of weights in each layer"
    null, random = whole["similarity"].null_coverage, whole["similarity"].random_coverage
    assert null is not None
    assert random is not None
    size = "up to" if quick else "above"
    return [
        Row(
            f"layers {size} 64 x 576 that cover more than with the paper's heuristic, of {len(judged)}",
            sum(gain > 0 for gain in ahead.values()),
            at_least=len(judged),
            how=f"{how}; by {100 * min(ahead.values()):.1f} … {100 * max(ahead.values()):.1f} points",
            details=details,
        ),
        Row("coverage of kept magnitude, all layers", 100 * whole["similarity"].coverage, "%", how=how),
        Row("… the paper's heuristic", 100 * whole["paper"].coverage, "%", how=how),
        Row("… random groups, columns by magnitude", 100 * random, "%", how=how),
        Row("… similarity where columns are shuffled (null)", 100 * null, "%", how=how),
    ]


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="*", choices=("regroup", "plain", "coverage", "refill"), help="some of the rows")
    made.add_argument("--steps", type=int, default=400, help="of training before the mask is chosen")
    made.add_argument("--ticket", type=Path, help="a ticket's folder with trained weights, instead of training")
    made.add_argument("--network", default="resnet-18", help="that is trained, or that the ticket is of")
    made.add_argument("--layer", default=MIDDLE, help="that the plain procedure is timed on")
    return made


if __name__ == "__main__":
    main("structure", measure, options())
