"""Time saved by the engine against the fastest dense engine, end to end, layout changes included.

    python benchmarks/engine.py --only resnet-18@64 vgg-16@1      # some of the rows
    python benchmarks/engine.py --threads 2
    python benchmarks/engine.py --precision bf16
    python benchmarks/engine.py --curve resnet-18@64 --figures FOLDER

Each row names a network and a batch. In one process, on cores that are kept, dense engines (torch eager, channels_last,
torch.compile with freezing, ONNX Runtime, OpenVINO in the same number format) and the engine under several masks are
timed in turns; all outputs are compared with eager torch first. What is saved is the median over rounds of 1 - time /
time of the fastest dense engine in the same round; the columns beside are the ends of its interval.

Masks are synthetic, random in every weight at one density (see `ticketry.core.synthetic_masks`), or those of tickets
that are named; weights are random with norms' statistics taken from a few batches of noise under the mask, so that
activations are neither nothing nor endless. --order any scatters the rows of a group over the layer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Row, in_fresh_process, main, parser
from engine_networks import NETWORKS, SEED, Subject
from torch import nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.core.synthetic_masks import Pattern
from ticketry.experiments.bench import time_densities
from ticketry.records.schema import as_json
from ticketry_engine.bench.compare import compare, time_saved_against
from ticketry_engine.bench.dense_engines import Call, Contender, ShrunkModel, Sparse, engine_names, rivals
from ticketry_engine.bench.timing import Case, Timing
from ticketry_engine.results import EngineTime, Timed

ROUNDS, QUICK_ROUNDS = 15, 2
GROUPS, SMALL = "groups:32", "groups:4:any"
"""Hardest case of groups of at least 32 rows, and of groups of 4 to 16 rows."""
TWO_THREADS = 2.0
"""Points by which two threads may fall short of the targets of one."""


# -- what is to be reached ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A row of the table: a network, a batch, and per cent of time to save by (pattern, density)."""

    network: str
    batch: int
    targets: dict[tuple[str, float], float | None]

    @property
    def name(self) -> str:
        return f"{self.network}@{self.batch}"


def _targets(groups: Sequence[float], small: Sequence[float], unstructured: Sequence[float]) -> dict[Any, Any]:
    """Return targets for densities of 26, 20 and 10 %; unstructured for 26 and 10 %."""
    made: dict[tuple[str, float], float | None] = {}
    for pattern, targets in ((GROUPS, groups), (SMALL, small)):
        made |= {(pattern, density): target for density, target in zip((0.26, 0.2, 0.1), targets, strict=True)}
    return made | {("unstructured", d): target for d, target in zip((0.26, 0.1), unstructured, strict=True)}


SETTINGS = (
    Setting("resnet-18", 64, _targets((74, 80, 89), (68, 75, 86), (60, 81)) | {("channels", 0.25): 70.0}),
    Setting("resnet-18", 8, _targets((74, 80, 89), (66, 75, 86), (54, 78))),
    Setting("resnet-18", 1, _targets((76, 82, 90), (68, 76, 86), (38, 74))),
    Setting("vgg-16", 64, _targets((75, 81, 90), (67, 75, 86), (60, 81))),
    Setting("vgg-16", 8, dict.fromkeys(_targets((0, 0, 0), (0, 0, 0), (0, 0)))),
    Setting("vgg-16", 1, _targets((79, 84, 91), (69, 78, 87), (34, 74))),
    Setting("resnet-18-64", 32, _targets((73, 79, 88), (66, 74, 85), (55, 77))),
    Setting("resnet-50-224", 8, {(GROUPS, 0.42): 55, (GROUPS, 0.2): 76, ("unstructured", 0.1): 72}),
    Setting(
        "block",
        8,
        {
            (GROUPS, 0.2): 70,
            (GROUPS, 0.1): 78,
            (SMALL, 0.2): 60,
            (SMALL, 0.1): 70,
            ("unstructured", 0.2): 50,
            ("unstructured", 0.1): 68,
        },
    ),
)
BF16 = {
    ("resnet-18", 64): {
        (f"{GROUPS}{pairs}", density): target
        for pairs in (":pairs", "")
        for density, target in ((0.26, 70.0), (0.2, 76.0), (0.1, 86.0))
    }
}
"""The fastest dense engine is one in bf16 too. Inputs are multiplied in pairs: those of masks that keep both or none of
a pair take half the time of others."""
SHRUNK_TARGET = 60.0
"""Per cent saved by half of the channels in ONNX Runtime."""
DENSE_RATIO = 1.05
"""At density 1, of the fastest dense engine's time."""
COLD_COMPILE, WARM_COMPILE = 1.0, 0.1
"""Seconds, ResNet-18."""


# -- masks and models -------------------------------------------------------------------------------------------------


def tickets_of(paths: Sequence[Path], network: str) -> Iterator[tuple[str, Mask]]:
    """Masks of the tickets that are of this network."""
    from ticketry.core.ticket.ticket import Ticket

    for path in paths:
        ticket = Ticket.load(path, trained=False)
        model = ticket.info.get("task", {}).get("key", {}).get("model", "")
        if model == network:
            yield f"ticket {path.name}", ticket.mask


def compile_case(case: Case, tune: bool = False, target: str = "host") -> Call:
    """The engine on a case whose model has its pruned weights at 0."""
    options = {} if case.precision == "fp32" else {"precision": case.precision}
    call: Call = tk.compile(case.model, None, case.inputs, threads=case.threads, tune=tune, target=target, **options)
    return call


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(arguments.threads)
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    timing = Timing(rounds=rounds, cold=arguments.cold, clock=arguments.clock, seed=SEED)
    rows: list[Row] = []
    if arguments.curve:
        for setting in _select_settings(arguments.curve):
            rows += curve_rows(setting, arguments, timing)
        return rows
    for setting in _select_settings(arguments.only):
        rows += setting_rows(setting, arguments, timing)
    if arguments.compile or not arguments.only:
        rows += compile_rows()
    return rows


def _select_settings(only: Sequence[str]) -> list[Setting]:
    unknown = set(only) - {setting.name for setting in SETTINGS}
    if unknown:
        sys.exit(f"no row is called {', '.join(sorted(unknown))}: {', '.join(one.name for one in SETTINGS)}")
    return [setting for setting in SETTINGS if not only or setting.name in only]


def setting_rows(setting: Setting, arguments: argparse.Namespace, timing: Timing) -> list[Row]:
    """Dense engines and all masks of one network and batch."""
    subject = Subject(NETWORKS[setting.network])
    case = Case(subject.dense, subject.examples(setting.batch), arguments.precision, arguments.threads)
    dense, engine = rivals(arguments.against), partial(compile_case, tune=arguments.tune)
    variants = {} if arguments.dense_only else dict(variants_of(setting, subject, arguments))
    contenders: list[Contender] = [*dense]
    small: dict[str, str] = {}
    for name, (mask, _) in variants.items():
        model = subject.masked(mask)
        contenders.append(Sparse(engine, name, model=model))
        if name.startswith("channels"):
            shrunk = ShrunkModel(rivals(["onnxruntime"])[0], tk.shrink(model, mask, case.inputs), model)
            contenders.append(shrunk)
            small[shrunk.name] = name
    if not arguments.dense_only:
        contenders.append(Sparse(engine, "no mask"))
    found = compare(case, contenders, timing, say=lambda text: _say(f"{setting.name}: {text}"))
    rows = [_dense_row(setting, found, row) for row in found.times if not row.sparse]
    for name, (mask, target) in variants.items():
        rows.append(_saved_row(setting, found, timing, name, target, mask))
        rows.append(_weight_row(setting, contenders, name, mask))
    rows += [_saved_row(setting, found, timing, name, SHRUNK_TARGET, None) for name in small]
    if not arguments.dense_only:
        rows.append(_dense_ratio_row(setting, found, timing))
    return [row for row in rows if row is not None]


def variants_of(
    setting: Setting, subject: Subject, arguments: argparse.Namespace
) -> Iterator[tuple[str, tuple[Mask, float | None]]]:
    """name -> (mask, per cent to save)"""
    targets = setting.targets
    if arguments.precision == "bf16":
        targets = dict.fromkeys(targets) | BF16.get((setting.network, setting.batch), {})
    for (pattern, density), target in targets.items():
        asked = _ordered(pattern, arguments.order)
        if arguments.patterns and asked not in arguments.patterns:
            continue
        slack = TWO_THREADS if arguments.threads > 1 else 0.0
        yield f"{asked} {100 * density:g} %", (subject.mask(asked, density), target and target - slack)
    for pattern in arguments.patterns:
        if pattern not in {_ordered(known, arguments.order) for known, _ in targets}:
            for density in (0.26, 0.2, 0.1):
                yield f"{pattern} {100 * density:g} %", (subject.mask(pattern, density), None)
    for name, mask in tickets_of(arguments.tickets, setting.network):
        yield f"{name}, {100 * mask.density:.3g} %", (mask, None)


def _ordered(pattern: str, order: str) -> str:
    parsed = Pattern.parse(pattern)
    if parsed.kind != "groups" or not order:
        return pattern
    return str(Pattern("groups", parsed.rows, order == "any", parsed.pairs))


# -- rows --------------------------------------------------------------------------------------------------------------


def _how(found: Timed) -> str:
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    caches = "cold" if found.cold else "hot"
    return f"{threads}, {found.precision}, {caches}, {found.clock} time, {found.rounds} rounds"


def _dense_row(setting: Setting, found: Timed, row: EngineTime) -> Row | None:
    if row.seconds is None:
        _say(f"{setting.name}: {row.engine} was not timed: {row.why}")
        return None
    fastest = found.fastest is not None and found.fastest.engine == row.engine
    return Row(
        f"{setting.name}, {row.engine}{' (fastest dense)' if fastest else ''}",
        1e3 * row.seconds,
        "ms",
        1e3 * (row.low or 0),
        1e3 * (row.high or 0),
        how=_how(found),
        details={"versions": row.versions, "wall": row.wall, "cpu": row.cpu, "error": row.error, "cores": found.cores},
    )


def _saved_row(
    setting: Setting, found: Timed, timing: Timing, name: str, target: float | None, mask: Mask | None
) -> Row | None:
    """None for an engine that could not be timed, such as ONNX Runtime in bf16."""
    row = next(row for row in found.times if row.engine == name)
    base = found.fastest
    assert base is not None
    if row.seconds is None:
        _say(f"{setting.name}: {name} was not timed")
        return None
    saved = time_saved_against(row, base, timing)
    return Row(
        f"{setting.name}, time saved: {name}{' kept' if mask else ''}",
        100 * saved.saved,
        "%",
        100 * saved.low,
        100 * saved.high,
        at_least=target,
        how=f"{100 * saved.confidence:.0f} % interval, against {base.engine}; {_how(found)}",
        details={
            "seconds": row.seconds,
            "density": mask.density if mask else None,
            "confidence": saved.confidence,
            "error": row.error,
            "prepare_seconds": row.prepare_seconds,
            "wall": row.wall,
            "cpu": row.cpu,
        },
    )


def _weight_row(setting: Setting, contenders: Sequence[Contender], name: str, mask: Mask) -> Row | None:
    """Bytes of the kernels' tables beside those of the dense weights."""
    made = getattr(next(one for one in contenders if one.name == name), "compiled", None)
    if made is None:
        return None
    model = next(one for one in contenders if one.name == name).model
    assert model is not None
    whole = sum(value.nbytes for value in model.parameters())
    kept = sum(4 * (row.kept - row.total) for row in mask.table()) + whole
    limit = 2.1 * kept / whole if name.startswith("unstructured") else kept / whole + 0.05
    return Row(
        f"{setting.name}, tables / dense weights: {name} kept",
        made.weight_bytes / whole,
        target=limit,
        how="bytes, of one batch size",
        details={"bytes": made.weight_bytes, "dense_bytes": whole},
    )


def _dense_ratio_row(setting: Setting, found: Timed, timing: Timing) -> Row:
    base = found.fastest
    assert base is not None
    saved = time_saved_against(next(row for row in found.times if row.engine == "no mask"), base, timing)
    return Row(
        f"{setting.name}, time without a mask / fastest dense",
        1 - saved.saved,
        low=1 - saved.high,
        high=1 - saved.low,
        target=DENSE_RATIO,
        how=f"against {base.engine}; {_how(found)}",
    )


def compile_rows() -> list[Row]:
    """ResNet-18 in fresh processes: kernels compiled, and from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        cold = in_fresh_process(compile_seconds, folder)
        warm = [in_fresh_process(compile_seconds, folder) for _ in range(3)]
        files = [in_fresh_process(load_seconds, folder) for _ in range(3)]
    how = "tk.compile and one call at batch 8, after torch is imported; density 10 %, unstructured"
    detail = {"cold": cold, "warm": warm}
    best = min(warm, key=lambda one: one["compile"] + one["first call"])
    file = min(files, key=lambda one: sum(one.values()))
    return [
        Row("compile ResNet-18, new kernels", sum(cold.values()), "s", target=COLD_COMPILE, how=how, details=detail),
        Row(
            "compile ResNet-18, kernels from the cache",
            sum(best.values()),
            "s",
            target=WARM_COMPILE,
            how=f"{how}; best of 3",
            details=detail,
        ),
        Row(
            "a model file of ResNet-18, kernels and plan from the cache",
            sum(file.values()),
            "s",
            target=WARM_COMPILE,
            how="tk.engine.load and what the first call takes beyond the second; best of 3",
            details={"file": files},
        ),
    ]


def compile_seconds(folder: str) -> dict[str, float]:
    """Time compilation in a new process with an empty kernel cache in `folder`."""
    os.environ["TICKETRY_CACHE"] = folder
    torch.set_num_threads(1)
    subject = Subject(NETWORKS["resnet-18"])
    mask = subject.mask("unstructured", 0.1)
    model, inputs = subject.masked(mask), subject.examples(8)
    small = nn.Linear(2, 2).eval()
    torch.export.export(small, (torch.zeros(2, 2),))  # what torch.export imports is not counted
    began = time.perf_counter()
    fast = tk.compile(model, None, inputs)
    compiled = time.perf_counter()
    fast(*inputs)
    called = time.perf_counter()
    fast.save(Path(folder) / "model.tk")
    tk.engine.load(Path(folder) / "model.tk")(*inputs)  # a file's plans are found by the file's digest
    return {"compile": compiled - began, "first call": called - compiled}


def load_seconds(folder: str) -> dict[str, float]:
    """Time loading, in a new process, the file that `compile_seconds` left in `folder`."""
    os.environ["TICKETRY_CACHE"] = folder
    torch.set_num_threads(1)
    inputs = Subject(NETWORKS["resnet-18"]).examples(8)
    import ticketry_engine.compiled

    began = time.perf_counter()
    fast = ticketry_engine.compiled.load(Path(folder) / "model.tk")
    loaded = time.perf_counter()
    fast(*inputs)
    first = time.perf_counter()
    fast(*inputs)
    return {"load": loaded - began, "first call": max(0.0, 2 * first - loaded - time.perf_counter())}


def curve_rows(setting: Setting, arguments: argparse.Namespace, timing: Timing) -> list[Row]:
    """Time against density, and the figure."""
    from ticketry.report.figures.evidence import time_by_density_svg

    rows = []
    subject = Subject(NETWORKS[setting.network])
    case = Case(subject.dense, subject.examples(setting.batch), arguments.precision, arguments.threads)
    for pattern in arguments.patterns or (GROUPS, "unstructured"):
        found = time_densities(
            case,
            rivals(arguments.against),
            partial(compile_case, tune=arguments.tune),
            pattern=pattern,
            timing=timing,
            say=lambda text, pattern=pattern: _say(f"{setting.name}, {pattern}: {text}"),
        )
        if arguments.figures:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            file = arguments.figures / f"{setting.name.replace('@', '-')}-{pattern.replace(':', '-')}.svg"
            file.write_text(time_by_density_svg({"curves": [as_json(found)]}), encoding="utf-8")
        for point in found.points:
            rows.append(
                Row(
                    f"{setting.name}, {pattern} {100 * point.density:.3g} %",
                    1e3 * point.seconds,
                    "ms",
                    1e3 * point.low,
                    1e3 * point.high,
                    how=f"ideal {1e3 * point.ideal:.4g} ms; {100 * point.saved:.1f} % saved; {_how(found.comparison)}",
                    details={"ideal": point.ideal, "saved": point.saved, "density": point.density},
                )
            )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    known = ", ".join(setting.name for setting in SETTINGS)
    made.add_argument("--only", nargs="+", default=[], metavar="ROW", help=f"of {known}")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    made.add_argument("--rounds", type=int, default=ROUNDS)
    made.add_argument("--cold", action="store_true", help="empty the caches before every call")
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu where others use the machine too")
    made.add_argument("--against", nargs="+", choices=engine_names(), help="dense engines; all by default")
    made.add_argument("--tune", action="store_true", help="time several plans of each, and keep the fastest")
    made.add_argument("--patterns", nargs="+", default=[], metavar="PATTERN", help="masks, instead of the table's")
    made.add_argument("--order", choices=("any", "next"), default="", help="rows of groups: anywhere, or neighbours")
    made.add_argument("--tickets", nargs="+", default=[], type=Path, metavar="TICKET", help="their masks too")
    made.add_argument("--curve", nargs="+", default=[], metavar="ROW", help="time against density of these rows only")
    made.add_argument("--figures", type=Path, help="with --curve: a folder for SVG files")
    made.add_argument("--dense-only", action="store_true", help="time the dense engines alone")
    made.add_argument("--compile", action="store_true", help="with --only: measure compiling as well")
    return made


if __name__ == "__main__":
    main("engine", measure, options())
