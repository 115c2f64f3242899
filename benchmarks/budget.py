"""Are budgets of time met? Networks that no calibration has seen, five budgets each; and how long allocation takes.

    python benchmarks/budget.py --output budget.json                    # all networks, those of the file left out
    python benchmarks/budget.py --output budget.json --only resnet-20 vgg-11 --structure auto
    python benchmarks/budget.py --allocation                            # ResNet-50, flops and time

Of each network (untrained): costs by `tk.cost.model` on this machine (under masks of the same scores), then masks for
0.7, 0.5, 0.3, 0.2 and 0.1 of the time of the same engine's dense network, by the energy of outputs, each compiled and
timed alternately with the dense one. The rows show estimated / measured time of the first mask, before any correction,
and of the last one, and how far the last one is from the budget, in a timing that it was not chosen by. One thread,
fp32, processor time. Budgets below the floor are marked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ticketry as tk
from ticketry.budgets.allocation import allocate_cost
from ticketry.budgets.cost_model import Curve
from ticketry.core.output_change import output_change
from ticketry.errors import TicketryError, UsageError
from ticketry.files import write_atomically
from ticketry.tasks import models
from ticketry_engine.bench.timing import machine

BUDGETS = (0.7, 0.5, 0.3, 0.2, 0.1)

Made = tuple[nn.Module, torch.Tensor]


def _own(name: str, size: int, batch: int, channels: int = 3) -> Made:
    shape = (channels, size, size)
    return models.build(name, shape=shape, classes=10), torch.randn(batch, *shape)


def _transformers(kind: str, size: int, batch: int, **settings: Any) -> Made:
    """A network of transformers' with random weights; `settings` of its configuration."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(image_size=size, num_labels=10, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config), torch.randn(batch, 3, size, size)


NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet-20": partial(_own, "resnet-20", 32, 16),
    "lenet-5": partial(_own, "lenet-5", 28, 64, 1),
    "lenet-300-100": partial(_own, "lenet-300-100", 28, 256, 1),
    "conv-4": partial(_own, "conv-4", 32, 8),
    "conv-6": partial(_own, "conv-6", 32, 4),
    "vgg-11": partial(_own, "vgg-11", 32, 4),
    "resnet-20-8": partial(_own, "resnet-20-8", 32, 16),
    "resnet-18 at 16 pixels": partial(_own, "resnet-18", 16, 16),
    "conv-2": partial(_own, "conv-2", 32, 16),
    "vgg-16, batch 1": partial(_own, "vgg-16", 32, 1),
    "resnet-32": partial(_own, "resnet-32", 32, 8),
    "resnet-20, batch 1": partial(_own, "resnet-20", 32, 1),
    "vgg-13": partial(_own, "vgg-13", 32, 2),
    "wrn-16-8 at 16 pixels": partial(_own, "wrn-16-8", 16, 4),
    "resnet-56": partial(_own, "resnet-56", 16, 16),
    "vgg-19": partial(_own, "vgg-19", 32, 2),
    "MobileNetV2": partial(_transformers, "MobileNetV2", 64, 8),
    "ConvNeXt": partial(
        _transformers, "ConvNext", 64, 8, hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], num_stages=4
    ),
    "ViT": partial(
        _transformers,
        "ViT",
        64,
        8,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=768,
    ),
    "RegNet": partial(
        _transformers, "RegNet", 64, 4, embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 2, 1]
    ),
}


def measure(name: str, structure: str) -> dict[str, Any]:
    """A network's row: its budgets, or why it has none."""
    torch.manual_seed(0)
    began, busy = time.perf_counter(), time.process_time()
    model, x = NETWORKS[name]()
    model.eval()
    names = ("weights", "rows:4", "rows:16") if structure == "auto" else ("weights",)
    scope = tk.scope(model)
    scores = output_change(model, scope, x)
    costs = tk.cost.model(model, x, threads=1, granularities=names, scores=scores)
    row: dict[str, Any] = {
        "network": name,
        "structure": structure,
        "batch": len(x),
        "dense_seconds": costs.dense,
        "floor": costs.floor / costs.dense,
        "spread": costs.spread,
        "residuals": costs.about["residuals"],
        "costs_seconds": time.perf_counter() - began,
        "costs_cpu_seconds": time.process_time() - busy,
        "budgets": [],
    }

    def energy(model: nn.Module, scope: tk.Scope, **_: Any) -> dict[str, torch.Tensor]:
        return scores

    for share in BUDGETS:
        try:
            met = tk.cost.meet(
                model,
                x,
                share,
                base="engine",
                cost=costs,
                score=energy,
                structure=structure,
                keep_at_least=0 if structure == "auto" else 1,
                threads=1,
            )
        except UsageError as error:
            row["budgets"].append({"asked": share, "why": str(error)})
            continue
        row["budgets"].append(
            {
                "asked": share,
                "measured": met.share,
                "interval": [met.low, met.high],
                "chosen": met.chosen,
                "first": met.first,
                "estimated_over_measured": met.estimated.value / costs.dense / met.share,
                "missed_by": met.missed_by,
                "rounds": met.rounds,
                "density": met.mask.density,
            }
        )
        print(f"  {name} {share:g}: {met}; first {met.first:.3f}", file=sys.stderr, flush=True)
    return row


def allocation() -> None:
    """Processor time of `tk.prune(flops=)` and of an allocation in time for ResNet-50's 25.5 million weights."""
    model = models.build("resnet-50-imagenet", shape=(3, 224, 224), classes=1000)
    x = torch.zeros(1, 3, 224, 224)
    scope = tk.scope(model)
    scores = tk.score.magnitude(model, scope)
    prices = tk.cost.model(model, x, unit="multiplications", scope=scope)
    curves = {
        name: Curve.fit([(density, layer.dense * density**0.9) for density in (0.01, 0.04, 0.12, 0.3, 0.6, 1.0)])
        for name, layer in prices.layers.items()
    }
    budget = 0.3 * prices.dense
    for what, run in {
        "prune(flops=0.9)": lambda: tk.prune(model, flops=0.9, example_inputs=x),
        "time: six pieces a layer": lambda: allocate_cost(scores, curves, budget, keep_at_least=1),
    }.items():
        spent = []
        for _ in range(3):
            begin = time.process_time()
            run()
            spent.append(time.process_time() - begin)
        print(f"{what}: {statistics.median(spent):.2f} s of processor (to reach: 3 s)")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each network: the budgets' first estimate / measured time, and how far the met one is away."""
    lines = ["| network | batch | structure | costs (s of processor) | first estimate / measured | budget missed by |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if "why" in row:
            lines.append(f"| {row['network']} | | | | {row['why'][:100]} | |")
            continue
        first = ", ".join("floor" if "why" in one else f"{one['first']:.2f}" for one in row["budgets"])
        away = ", ".join("floor" if "why" in one else f"{100 * one['missed_by']:+.1f} %" for one in row["budgets"])
        head = f"| {row['network']} | {row['batch']} | {row['structure']} | {row['costs_cpu_seconds']:.0f}"
        lines.append(f"{head} | {first} | {away} |")
    found = [one for row in rows for one in row.get("budgets", []) if "why" not in one]
    if found:
        near = sum(abs(one["first"] - 1) <= 0.08 for one in found)
        met = sum(abs(one["missed_by"]) <= 0.02 for one in found)
        lines.append(f"\n{len(found)} budgets: {near} of the first estimates within 8 %, {met} met within 2 %")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("budget.json"), help="rows are added to it")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--structure", choices=("none", "auto"), default="none")
    parser.add_argument("--allocation", action="store_true", help="time allocation for ResNet-50 and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.allocation:
        allocation()
        return 0
    document = json.loads(options.output.read_text()) if options.output.exists() else {"machine": {}, "rows": []}
    for name in options.only:
        if any((row["network"], row.get("structure")) == (name, options.structure) for row in document["rows"]):
            continue
        try:
            row = measure(name, options.structure)
        except (ImportError, TicketryError, RuntimeError) as error:
            row = {"network": name, "structure": options.structure, "why": f"{type(error).__name__}: {error}"}
        document["rows"].append(row)
        document["machine"] = machine()
        write_atomically(options.output, json.dumps(document, indent=1).encode())
    print(table(document["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
