"""SparseProp's backward pass / ours: the same layers, weights kept, inputs and thread, and a whole network.

SparseProp (Nikdan et al. 2023, arXiv 2302.04852; https://github.com/IST-DASLab/sparseprop) runs unchanged, if it can
be imported: it is no part of this repository. Of its two kernels for convolutions each layer has the one that is faster
here. A layer stands alone, so that both sides bring values into their layout and out of it again; in a whole network
only SparseProp does so at every layer, and chooses for each, as its own function does, whether to run densely. On both
sides the gradients of weights are of those that are kept. Before anything is timed, gradients of both are compared.

    python benchmarks/training_peer.py --from FOLDER     # of a clone in which its extension is built
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import Row, alternating, main, one_thread, parser, quartiles, timed
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from ticketry.core.synthetic_masks import synthetic
from ticketry.tasks import models

TARGET = 3.0
"""Their time / ours, at least, with 10 % of the weights."""

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3x3, 64 -> 64, 32 x 32": (lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 32, 32)),
    "3x3, 64 -> 128, stride 2": (lambda: nn.Conv2d(64, 128, 3, 2, padding=1, bias=False), (64, 32, 32)),
    "3x3, 128 -> 128, 16 x 16": (lambda: nn.Conv2d(128, 128, 3, padding=1, bias=False), (128, 16, 16)),
    "3x3, 256 -> 256, 8 x 8": (lambda: nn.Conv2d(256, 256, 3, padding=1, bias=False), (256, 8, 8)),
    "3x3, 512 -> 512, 4 x 4": (lambda: nn.Conv2d(512, 512, 3, padding=1, bias=False), (512, 4, 4)),
    "linear, 4096 -> 4096": (lambda: nn.Linear(4096, 4096), (4096,)),
}
"""Layers of ResNet-18 for images of 32 x 32, and one of a network of linear layers."""


class Backward:
    """The backward pass of a call, timed separately: to its input too, unless that is what a network begins with."""

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        dy: Tensor,
        parameters: Iterable[Tensor],
        *,
        whole: bool = False,
    ) -> None:
        self.call, self.x, self.dy = call, x.clone().requires_grad_(not whole), dy
        self.parameters = list(parameters)

    def __call__(self) -> float:
        """Processor seconds."""
        for one in (self.x, *self.parameters):
            one.grad = None
        y = self.call(self.x)
        return timed(lambda: y.backward(self.dy))


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    if arguments.source:
        sys.path.insert(0, str(arguments.source))
    try:
        from sparseprop.modules import SparseConv2d, SparseLinear
    except ImportError:
        sys.exit("SparseProp is not installed: build it from its repository, and give its folder with --from")
    rows = []
    for what, (made, shape) in LAYERS.items():
        if arguments.layers not in what:
            continue
        torch.manual_seed(0)
        layer = nn.Sequential(made())
        mask = synthetic(layer, "unstructured", arguments.density)
        mask.apply_(layer)
        x = torch.randn(arguments.batch, *shape)
        theirs = {"linear": SparseLinear.from_dense(layer[0])} if len(shape) == 1 else both(SparseConv2d, layer[0])
        dy = torch.randn_like(layer(x))
        ours = tk.sparse_training(copy.deepcopy(layer), mask, x)
        rows_of = dict(ours.named_kept_parameters())
        cases = {"ours": Backward(ours, x, dy, rows_of.values())}
        cases["torch"] = Backward(twin := copy.deepcopy(layer), x, dy, twin.parameters())
        cases |= {f"theirs, {name}": Backward(one, x, dy, one.parameters()) for name, one in theirs.items()}
        check(cases, rows_of["0.weight"], theirs)
        rows.append(row(f"{what}, batch {arguments.batch}", cases, arguments))
    return rows if arguments.layers else [*rows, *networks(arguments)]


def both(made: Any, conv: nn.Module) -> dict[str, nn.Module]:
    """Their kernels over images and over columns: the latter ignore strides in the forward pass."""
    return {name: made.from_dense(conv, over) for name, over in (("images", False), ("columns", True))}


def check(cases: Mapping[str, Backward], weight: Tensor, theirs: Mapping[str, nn.Module]) -> None:
    """Ends the benchmark where gradients differ."""
    for case in cases.values():
        case()
    assert weight.grad is not None
    for name, one in theirs.items():
        pairs = [(one.W_val.grad, weight.grad), (cases[f"theirs, {name}"].x.grad, cases["ours"].x.grad)]
        for other, mine in pairs:
            assert other is not None
            assert mine is not None
            far = float((other - mine).norm() / mine.norm())
            if far > 1e-4:
                sys.exit(f"gradients of SparseProp ({name}) differ from ours by {far:.1e}")


def row(what: str, cases: Mapping[str, Callable[[], float]], arguments: argparse.Namespace) -> Row:
    """Return the row of their faster time / ours."""
    seconds = alternating(cases, 2 if arguments.quick else arguments.rounds)
    best = min((name for name in cases if name.startswith("theirs")), key=lambda name: statistics.median(seconds[name]))
    low, median, high = quartiles([a / b for a, b in zip(seconds[best], seconds["ours"], strict=True)])
    told = ", ".join(f"{name} {1e3 * statistics.median(some):.1f} ms" for name, some in seconds.items())
    what = f"backward, {what}, {arguments.density:.0%} kept: SparseProp / ours"
    return Row(what, median, "", low, high, at_least=TARGET, how=told, details=seconds)


def networks(arguments: argparse.Namespace) -> list[Row]:
    """Whole networks: what goes back from the loss to the first layer's weights."""
    from sparseprop.utils import swap_modules_with_sparse

    rows = []
    for name in arguments.networks:
        torch.manual_seed(0)
        model = models.build(name, shape=(3, 32, 32), classes=10).train()
        x, y = torch.randn(arguments.batch, 3, 32, 32), torch.randint(0, 10, (arguments.batch,))
        mask = synthetic(model, "unstructured", arguments.density)
        mask.apply_(model)
        with contextlib.redirect_stdout(io.StringIO()):
            swapped = swap_modules_with_sparse(model, tuple(x.shape))
        count = sum(type(one).__module__.startswith("sparseprop") for one in swapped.modules())
        fast, twin = tk.sparse_training(copy.deepcopy(model), mask, x), copy.deepcopy(model)
        cases = {
            which: Backward(lambda x, one=one, y=y: F.cross_entropy(one(x), y), x, torch.ones(()), moved, whole=True)
            for which, one, moved in (
                ("ours", fast, fast.kept_parameters()),
                ("torch", twin, list(twin.parameters())),
                ("theirs", swapped, list(swapped.parameters())),
            )
        }
        rows.append(row(f"{name}, batch {arguments.batch}, {count} layers in their kernels", cases, arguments))
    return rows


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", default=["resnet-18"])
    options.add_argument("--from", dest="source", type=Path, help="folder that SparseProp is imported from")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--layers", default="", help="only layers with this in their names, and no networks")
    options.add_argument("--density", type=float, default=0.1)
    options.add_argument("--rounds", type=int, default=5)
    main("training_peer", measure, options)
