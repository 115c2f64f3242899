"""Latency of the tickets of runs on this machine: time / the same network's without a mask.

    python benchmarks/ticket_times.py RUN... --store FOLDER --batch 16 --widths 0.75 0.5 0.35 0.25

Masks are read from the store (an unpacked bundle will do, for weights are not looked at) and timed in the engine, in
turns with the network without a mask; beside them dense engines, and the same network of other widths.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from common import Row, main, one_thread, parser
from torch import nn

from engine import compile_case
from ticketry.experiments.run_file import read_toml
from ticketry.lab.store.store import open_store
from ticketry.tasks import catalogue
from ticketry.tasks.task import Spec
from ticketry_engine.bench.compare import compare
from ticketry_engine.bench.dense_engines import Contender, Sparse, engine_names, rivals
from ticketry_engine.bench.timing import Case, Timing

Asked: TypeAlias = dict[str, Any]
"""Content of a run's run.toml."""
OWN = "no mask"
AT_ONCE = 9
"""Tickets that are timed in turns with one another; more at a time would be far apart."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rows: list[Row] = []
    for run in arguments.runs:
        folder = arguments.store / "runs" / run
        record = json.loads((folder / "run.json").read_text())
        _, asked = read_toml(folder / "run.toml", "run")
        rows += rows_of(run, record["points"], asked, arguments)
    return rows + family(asked, arguments)


def rows_of(run: str, points: list[Any], asked: Asked, arguments: argparse.Namespace) -> list[Row]:
    """A run's levels: the mean over replicates, and the least and the most."""
    store, model, tickets = open_store(str(arguments.store)), network(asked), dict[int, dict[int, str]]()
    for point in points:
        if point["role"] == "ticket":
            trajectory, _, step = point["key"].partition("@")
            trained = store.load_valid_result(trajectory, int(step))
            assert trained is not None
            (mask,) = (one["mask"] for one in trained["segment"]["variants"] if "mask" in one)
            tickets.setdefault(point["level"], {})[point["replicate"]] = mask
    masks = sorted({mask for level in tickets.values() for mask in level.values()})
    times: dict[str, float] = {}
    for first in range(0, len(masks), AT_ONCE):
        some = masks[first : first + AT_ONCE]
        masked = [Sparse(compile_case, one, model=store.get_mask(one).apply_(copy.deepcopy(model))) for one in some]
        times |= shares(model, asked, masked, arguments)
    rows = []
    for level, by_replicate in sorted(tickets.items()):
        found = [times[mask] for mask in by_replicate.values()]
        kept = 100 * statistics.fmean(store.get_mask(mask).density for mask in by_replicate.values())
        details = {str(replicate): times[mask] for replicate, mask in by_replicate.items()}
        rows.append(
            Row(
                f"{run}, level {level}",
                statistics.fmean(found),
                "",
                min(found),
                max(found),
                how=f"{kept:.1f} % of the weights, {len(found)} replicates: mean, least, most",
                details=details,
            )
        )
    return rows


def family(asked: Asked, arguments: argparse.Namespace) -> list[Row]:
    """Dense engines, and the network in other widths."""
    wider = [Sparse(compile_case, f"@{width}", model=network(asked, f"@{width}")) for width in arguments.widths]
    found = shares(network(asked), asked, [*rivals(arguments.against), *wider], arguments)
    return [Row(f"{asked['model']} {name}", share, how="without a mask") for name, share in found.items()]


def shares(
    model: nn.Module, asked: Asked, contenders: Sequence[Contender], arguments: argparse.Namespace
) -> dict[str, float]:
    """Return for each contender the median over rounds of its time / that of the network without a mask."""
    x = catalogue.create_task(spec(asked)).example(arguments.batch, arguments.data)
    timing = Timing(rounds=2 if arguments.quick else arguments.rounds, clock=arguments.clock)
    dense = [] if any(not one.sparse for one in contenders) else rivals(["eager"])  # one is the reference
    all_of_them: list[Contender] = [Sparse(compile_case, OWN), *dense, *contenders]
    found = compare(Case(model, (x,), "fp32", 1), all_of_them, timing, say=lambda text: None)
    taken = {one.engine: one.cpu if arguments.clock == "cpu" else one.wall for one in found.times}
    wanted = {one.name for one in contenders} & {name for name, times in taken.items() if times}
    return {
        name: statistics.median(a / b for a, b in zip(taken[name], taken[OWN], strict=True)) for name in sorted(wanted)
    }


def spec(asked: Asked, width: str = "") -> Spec:
    options = tuple(sorted(asked.get("options", {}).items()))
    name = asked["model"].partition("@")[0] + width if width else asked["model"]
    return Spec(asked["task"], name, options)


def network(asked: Asked, width: str = "") -> nn.Module:
    return catalogue.create_task(spec(asked, width)).build().eval().requires_grad_(False)


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("runs", nargs="+", help="names of runs of one network, as `ticketry list runs` tells them")
    made.add_argument("--store", type=Path, required=True)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--widths", nargs="*", default=[], help="of the network without a mask: 0.5 0.25")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    made.add_argument(
        "--against", nargs="*", choices=engine_names(), default=["openvino", "onnxruntime"], help="dense engines"
    )
    main("ticket_times", measure, made)
