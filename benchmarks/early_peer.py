"""Masks of ours and of the public implementation of Synaptic-Flow (Tanaka et al. 2020), on the same weights and batch.

    git clone https://github.com/ganguli-lab/Synaptic-Flow DIR
    python benchmarks/early_peer.py --peer DIR --data DATA

The networks are theirs (plain modules to us), in evaluation mode, as their loop has it; all weights of convolutions and
linear layers are prunable. The overlap is |ours and theirs| / |theirs|. A random mask would overlap by its density.

Where definitions differ, a row says so and has no target: their counts truncate k = int((1 - density) N) and drop ties
at the threshold, which iterated 100 times adds up; iterated SynFlow in float32 flows over many orders of magnitude, in
which their kth value is one of many equal ones; SynFlow passes norms by, and theirs are in evaluation mode with their
epsilon, a difference of 1e-5 that 100 cuts of a residual network turn into another mask.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import Row, main, parser
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.tasks.catalogue import create_task
from ticketry.tasks.task import Spec

BATCH = 256
DENSITIES = (0.1, 0.02)
TARGET = 0.99


def measure(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    peer = Peer(arguments.peer)
    inputs, targets = batch(arguments.data)
    rows = []
    for name in arguments.network or peer.networks:
        build = peer.networks[name]
        torch.manual_seed(0)
        model = build().eval()
        for score, theirs in peer.pruners.items():
            for density in DENSITIES:
                rows.append(row(f"{name}, {score}", peer, model, theirs, score, density, (inputs, targets)))
        if not arguments.quick:
            rows += iterated(name, peer, model, (inputs, targets))
    return rows


def iterated(name: str, peer: Peer, model: nn.Module, data: tuple[Tensor, Tensor]) -> list[Row]:
    """SynFlow cut 100 times: with their counts at each cut, and as each of us counts. It sees one example's shape."""
    one = (data[0][:1], data[1][:1])
    examples = (one[0].double(), one[1])
    double = exactly_passed_by(copy.deepcopy(model).double())
    cases = {
        "float64": (double, examples),
        "float64 with the norms' epsilon": (copy.deepcopy(model).double(), examples),
        "float32": (exactly_passed_by(copy.deepcopy(model)), one),
    }
    found = []
    for precision, (network, given) in cases.items():
        theirs, counts = peer.mask(network, peer.pruners["synflow"], given, DENSITIES[1], 100)
        ours: Mask | None = None
        total = sum(tk.scope(network).sizes.values())
        for kept in counts:
            ours = tk.prune(network, kept / total, score="synflow", within=ours, batches=[given], loss=loss)
        assert ours is not None
        what = f"{name}, synflow cut 100 times, {precision}, their counts"
        target = TARGET if precision == "float64" else None
        found.append(Row(what, overlap(ours, theirs), at_least=target, how=f"density {DENSITIES[1]:g}"))
    own = tk.prune(double, DENSITIES[1], score="synflow", iterations=100, batches=[examples], loss=loss)
    theirs, _ = peer.mask(double, peer.pruners["synflow"], examples, DENSITIES[1], 100)
    what = f"{name}, synflow cut 100 times, float64, each its own counts"
    return [*found, Row(what, overlap(own, theirs), how=f"density {DENSITIES[1]:g}; differs by counting")]


def exactly_passed_by(model: nn.Module) -> nn.Module:
    """The model, its norms without epsilon: in evaluation mode, those of a new network then return their input.

    With it each divides by sqrt(1 + epsilon), and in a residual network paths have different numbers of norms.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.0
    return model


def row(
    what: str,
    peer: Peer,
    model: nn.Module,
    pruner: type[Any],
    score: str,
    density: float,
    data: tuple[Tensor, Tensor],
) -> Row:
    theirs, _ = peer.mask(model, pruner, data, density, 1)
    options = {} if score in ("magnitude", "synflow") else {"norms": "running"}

    def scored(network: nn.Module, scope: tk.Scope, **given: Any) -> dict[str, Tensor]:
        return tk.score.get(score)(network, scope, **given, **options)

    # A layer that theirs empties keeps one weight.
    ours = tk.prune(model, density, score=scored, collapse="keep", batches=[data], loss=loss)
    return Row(what, overlap(ours, theirs), at_least=TARGET, how=f"density {density:g}, one batch of {BATCH}, float32")


def loss(model: nn.Module, given: object) -> Tensor:
    inputs, targets = given  # type: ignore[misc]
    return nn.functional.cross_entropy(model(inputs), targets)


def overlap(ours: Mask, theirs: dict[str, Tensor]) -> float:
    both = sum(int((ours[name] & kept.bool()).sum()) for name, kept in theirs.items())
    return both / sum(int(kept.sum()) for kept in theirs.values())


def batch(data: Path | None) -> tuple[Tensor, Tensor]:
    """Images of the training split, scaled as the task does."""
    task = create_task(Spec("cifar10"))
    split = task.load(data).train
    return task.prepare(split.inputs[:BATCH]), split.targets[:BATCH]


class Peer:
    """The other implementation, imported from its folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "Pruners" / "pruners.py").is_file():
            sys.exit(f"{folder} is no copy of Synaptic-Flow: git clone https://github.com/ganguli-lab/Synaptic-Flow")
        with _importable(folder):
            pruners = importlib.import_module("Pruners.pruners")
            self._generator = importlib.import_module("Utils.generator")
            vgg = importlib.import_module("Models.lottery_vgg")
            resnet = importlib.import_module("Models.lottery_resnet")
        shape = (3, 32, 32)
        self.networks: dict[str, Callable[[], nn.Module]] = {
            "VGG-16 with norms": lambda: vgg.vgg16_bn(shape, 10),
            "ResNet-20": lambda: resnet.resnet20(shape, 10),
        }
        self.pruners: dict[str, type[Any]] = {
            "magnitude": pruners.Mag,
            "snip": pruners.SNIP,
            "grasp200": pruners.GraSP,
            "synflow": pruners.SynFlow,
        }

    def mask(
        self, model: nn.Module, pruner: type[Any], data: tuple[Tensor, Tensor], density: float, cuts: int
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Their mask by parameter's name, and how many weights each cut kept: their loop, without its progress bar."""
        network = copy.deepcopy(model)
        made = pruner(self._generator.masked_parameters(network))
        kept = []
        with _default_type(data[0].dtype):  # theirs makes its inputs of ones in it
            for cut in range(cuts):
                made.score(network, nn.functional.cross_entropy, [data], "cpu")
                made.mask(density ** ((cut + 1) / cuts), "global")
                kept.append(int(made.stats()[0]))
        names = {name.removesuffix("_mask"): value for name, value in network.named_buffers()}
        return {name: names[name] for name in tk.scope(model)}, kept


@contextlib.contextmanager
def _default_type(wanted: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(wanted)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--peer", type=Path, required=True, metavar="DIR", help="a copy of Synaptic-Flow")
    options.add_argument("--network", nargs="*", choices=("VGG-16 with norms", "ResNet-20"))
    main("early_peer", measure, options)
