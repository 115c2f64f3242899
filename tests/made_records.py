"""Run and evidence records made up for tests: the shape of real ones, with numbers from a formula."""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
CONTROLS = ("random_reinit", "shuffled", "random_prune")
REWINDS = {"0": 0, "1%": 43, "3%": 129, "10%": 430}


def resnet50() -> dict[str, tuple[int, ...]]:
    """The convolutions of a bottleneck network and its classifier, 50 tensors by name and shape."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        inner = 32 * 2**stage
        for block in range(blocks):
            for number, shape in enumerate(((inner, width, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)), 1):
                shapes[f"layer{stage}.{block}.conv{number}.weight"] = shape
            width = 4 * inner
    shapes["fc.weight"] = (10, 2048)
    return shapes


def search_record(
    *,
    levels: int = 18,
    replicates: int = 3,
    controls: tuple[str, ...] = CONTROLS,
    shapes: dict[str, tuple[int, ...]] | None = None,
    metric: tuple[str, str, bool] = ("accuracy", "%", True),
    seed: int = 0,
) -> dict[str, Any]:
    """A finished iterative search: 20 % of the weights removed a level; tickets fade late, controls early."""
    shapes = shapes or LENET
    prunable = sum(math.prod(shape) for shape in shapes.values())
    rng = random.Random(seed)
    points = []
    for replicate in range(replicates):
        points.append(_point(rng, replicate, 0, "dense", shapes, metric))
        for level in range(1, levels + 1):
            points.extend(_point(rng, replicate, level, role, shapes, metric) for role in ("ticket", *controls))
    return {
        "format": 1,
        "kind": "search",
        "run": "iterative-fashion-mnist-3f2a91c0",
        "method": "iterative",
        "title": "Iterative magnitude pruning with rewinding",
        "task": {
            "name": "fashion-mnist",
            "model": "lenet-300-100" if shapes is LENET else "resnet-50",
            "metric": {"name": metric[0], "unit": metric[1], "higher_is_better": metric[2]},
            "parameters": prunable + 410,
            "prunable": prunable,
        },
        "settings": {
            "rate": 0.2,
            "levels": levels,
            "rewind": "1%",
            "retrain": "continue",
            "allocation": "global",
            "score": "magnitude",
            "scope": None,
            "controls": list(controls),
            "seed": 0,
        },
        "recipe": {
            "length": "10ep",
            "batch": 128,
            "optimizer": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0001,
            "schedule": "cosine",
            "milestones": [],
        },
        "steps": {"total": 4300, "per_epoch": 430, "rewind": 43},
        "command": "ticketry search iterative --task fashion-mnist --rewind 1%",
        "points": points,
        "cost": {
            "segments_asked": 58 * replicates,
            "segments_trained": 40 * replicates,
            "steps_asked": 243810 * replicates,
            "steps_trained": 168000 * replicates,
            "train_seconds": 1310.2,
            "wall_seconds": 690.0,
            "dense_steps": 4300,
            "search_steps_per_replicate": 76669,
            "control_steps": 4257 * levels * len(controls) * replicates,
        },
        "environment": {
            "ticketry": "0.1.0",
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "processor": "AMD EPYC",
            "threads_per_segment": 1,
            "workers": 2,
            "precision": "fp32",
            "device": "cpu",
            "date": "2026-11-20T10:11:12Z",
        },
        "config": 'method = "iterative"\ntask = "fashion-mnist"\n\n[settings]\nrate = 0.2\nrewind = "1%"\n',
        "store": ".ticketry",
    }


def _point(
    rng: random.Random,
    replicate: int,
    level: int,
    role: str,
    shapes: dict[str, tuple[int, ...]],
    metric: tuple[str, str, bool],
) -> dict[str, Any]:
    density = 0.8**level
    layers = _layers(density, shapes)
    prunable = sum(layer["total"] for layer in layers)
    test = _score(density, role) + rng.gauss(0, 0.18 + 0.6 * (1 - density) ** 12)
    validation = test + 0.6 + rng.gauss(0, 0.15)
    if not metric[2]:
        test, validation = (100 - test) / 30, (100 - validation) / 30
    return {
        "replicate": replicate,
        "level": level,
        "role": role,
        "density": density,
        "kept": round(density * prunable),
        "validation": {metric[0]: validation, "loss": 0.31},
        "test": {metric[0]: test, "loss": 0.33},
        "steps": 4300 if role == "dense" else 4257,
        "seconds": 8.1,
        "key": f"{rng.getrandbits(256):064x}",
        "cached": False,
        "layers": layers,
        **({"ticket": f"tickets/iterative/replicate-{replicate}-level-{level}"} if role == "ticket" else {}),
    }


def _score(density: float, role: str) -> float:
    """Accuracy: a small hump, then a fall that starts earlier for controls and ends at chance."""
    hump = {"ticket": 0.5, "dense": 0.0}.get(role, 0.05)
    knee = {"dense": 1e-6, "ticket": 0.012, "random_reinit": 0.045, "shuffled": 0.06, "random_prune": 0.07}[role]
    fall = 1 / (1 + (density / knee) ** 2.2)
    return 88.4 + hump * 4 * density * (1 - density) - (88.4 - 10) * fall * fall - 3 * fall


def _layers(density: float, shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Small layers keep more than large ones; the density of all is met roughly, which is all that is shown."""
    largest = max(math.prod(shape) for shape in shapes.values())
    layers = []
    for name, shape in shapes.items():
        total = math.prod(shape)
        share = density ** (0.35 + 0.65 * (total / largest) ** 0.2)
        layers.append({"name": name, "shape": list(shape), "kept": max(1, round(share * total)), "total": total})
    return layers


def at_rewind(record: dict[str, Any], asked: str) -> dict[str, Any]:
    """The run as if it had rewound to that step."""
    record["run"] = f"iterative-fashion-mnist-{REWINDS[asked]:08x}"
    record["settings"]["rewind"] = asked
    record["steps"]["rewind"] = REWINDS[asked]
    return record


def add_verdicts(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a verdict for each level: wins in the middle, undecided at the ends, loses at last."""
    levels = sorted({point["level"] for point in record["points"]} - {0})
    for point in record["points"]:
        point["budget"] = 4300
    words = {levels[0]: "undecided", levels[-1]: "loses"}
    record["verdicts"] = [
        {
            "level": level,
            "density": 0.8**level,
            "verdict": words.get(level, "wins"),
            "claim": "wins",
            "margin": 0.5,
            "confidence": 0.95,
            "n": 3,
            "difference": 0.31 - 0.02 * level,
            "interval": None if level == levels[-1] else [0.11 - 0.02 * level, 0.51 - 0.02 * level],
            "p": 0.0004 * level,
            "p_holm": 0.002 * level,
            "rule": "pooled",
            "probability": 1 - 0.0001 * level,
            "more_seeds": None if level == levels[-1] else 4,
            "reasons": [f"the difference to dense is {0.31 - 0.02 * level:.2f}", "all controls are worse"],
            "comparisons": [
                {"role": role, "mean": 0.31 + 0.2 * index, "low": 0.1, "high": 0.9, "p": 0.01}
                for index, role in enumerate(("dense", *CONTROLS))
            ],
        }
        for level in levels
    ]
    return record


def with_pictures(record: dict[str, Any], shape: tuple[int, ...] = (1, 28, 28)) -> dict[str, Any]:
    """Replicate 0's tickets with a picture of the first layer: filters for a shape of four, inputs for one of three."""
    rng = random.Random(1)
    for point in record["points"]:
        if point["role"] == "ticket" and point["replicate"] == 0:
            kept = point["density"]
            if len(shape) == 4:
                bits = "".join("1" if rng.random() < kept else "0" for _ in range(math.prod(shape)))
                bits += "0" * (-len(bits) % 8)
                data = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
            else:
                middle = [(y - 13.5) ** 2 + (x - 13.5) ** 2 for y in range(shape[1]) for x in range(shape[2])]
                data = bytes(min(255, round(255 * kept * math.exp(-far / 90))) for far in middle) * shape[0]
            point["first_layer"] = {
                "name": "conv.weight" if len(shape) == 4 else "fc1.weight",
                "kind": "filters" if len(shape) == 4 else "inputs",
                "shape": list(shape),
                "data": base64.b64encode(data).decode(),
            }
    return record


def verify_record(*, seeds: int = 7, verdict: str = "wins", noise: bool = True) -> dict[str, Any]:
    """A verification of the ticket of level 8 of `search_record`'s run."""
    rng = random.Random(5)
    means = {"ticket": 89.0, "dense": 88.6, "random_reinit": 88.1, "shuffled": 87.6, "random_prune": 87.2}
    means["small_dense"] = 87.9
    networks = [
        {
            "role": role,
            "values": [round(mean + rng.gauss(0, 0.16), 2) for _ in range(seeds)],
            "budget": 4300,
            "parameters": 266610 if role == "dense" else 45000,
            "model": "lenet-300-100" if role != "small_dense" else "lenet-52-18",
        }
        for role, mean in means.items()
    ]
    ticket = networks[0]["values"]
    comparisons = []
    for network in networks[1:]:
        differences = [a - b for a, b in zip(ticket, network["values"], strict=True)]
        mean = sum(differences) / seeds
        comparisons.append({"role": network["role"], "mean": mean, "low": mean - 0.2, "high": mean + 0.2, "p": 0.004})
    return {
        "format": 1,
        "kind": "verify",
        "name": "verify-0a1b2c3d",
        "run": "iterative-fashion-mnist-3f2a91c0",
        "ticket": "tickets/replicate-0-level-08",
        "replicate": 0,
        "level": 8,
        "density": 0.8**8,
        "kept": 44660,
        "method": "iterative",
        "task": search_record(levels=0)["task"],
        "claim": "wins",
        "margin": 0.5,
        "confidence": 0.95,
        "interim": [3, 5, 7, 10],
        "resolution": 0.01,
        "verdict": verdict,
        "difference": comparisons[0]["mean"],
        "interval": [comparisons[0]["low"], comparisons[0]["high"]],
        "n": seeds,
        "p": 0.0021,
        "p_loses": 1.0,
        "more_seeds": 0,
        "reasons": ["worse than dense by less than the margin", "better than every control"],
        "networks": networks,
        "comparisons": comparisons,
        "noise": {"values": [0.05, -0.1, 0.2], "n": 3, "mean": 0.05, "sd": 0.15, "low": -0.32, "high": 0.42}
        if noise
        else None,
        "references": [
            {"role": "dense_at_cost", "steps": 76669, "values": [88.9, 88.8, 89.1], "note": "as long as the search"},
            {"role": "dense_at_flops", "steps": 720, "values": [85.2, 85.6, 85.0], "note": "as many operations"},
        ],
        "left_out": [{"role": "small_dense_wide", "why": "no width has as many weights"}],
        "cost": {
            "segments_asked": 60,
            "segments_trained": 44,
            "steps_asked": 1,
            "steps_trained": 1,
            "wall_seconds": 90,
        },
        "environment": {"ticketry": "0.1.0"},
        "command": "ticketry verify iterative-fashion-mnist-3f2a91c0 --level 8",
        "store": ".ticketry",
    }


def stability_record(
    *, replicates: int = 3, levels: tuple[int, ...] = (3, 7, 11), layers: bool = True
) -> dict[str, Any]:
    """Stability over five rewind steps: distances and barriers fall with the step, the tickets' before the others'."""
    rng = random.Random(9)
    steps = {"0": 0, "0.5%": 22, "1%": 43, "3%": 129, "10%": 430}
    rows = [
        _stability_row(rng, replicate, step, level, role, layers)
        for replicate in range(replicates)
        for step in steps.values()
        for level, role in [
            (0, "dense"),
            *((level, role) for level in levels for role in ("ticket", "shuffled", "random_prune")),
        ]
    ]
    return {
        "format": 1,
        "kind": "stability",
        "name": "stability-9f8e7d6c",
        "runs": ["iterative-fashion-mnist-3f2a91c0"],
        "task": search_record(levels=0)["task"],
        "rewinds": [{"asked": asked, "step": step, "run": f"run-{step}"} for asked, step in steps.items()],
        "total_steps": 4300,
        "replicates": replicates,
        "rows": rows,
        "cost": {"segments_asked": 300, "segments_trained": 280},
        "environment": {"ticketry": "0.1.0"},
        "command": "ticketry stability --rewind 0,0.5%,1%,3%,10%",
        "store": ".ticketry",
    }


def _stability_row(
    rng: random.Random, replicate: int, step: int, level: int, role: str, layers: bool
) -> dict[str, Any]:
    settled = 1 / (1 + (step / {"ticket": 40, "dense": 60}.get(role, 900)) ** 1.5)
    density = 0.8**level
    l2 = 4 + 18 * settled * math.sqrt(density) + rng.gauss(0, 0.3)
    height = 0.1 + 22 * settled * (0.6 + 0.4 * density) + abs(rng.gauss(0, 0.4))
    alphas = [index / 10 for index in range(11)]
    ends = 11.5 + 4 * settled * (1 - density)
    return {
        "replicate": replicate,
        "step": step,
        "level": level,
        "density": density,
        "role": role,
        "value": 100 - ends + rng.gauss(0, 0.2),
        "pruning": None if role == "dense" else {"l2": 1.2 * l2, "angle": 20 + 60 * settled},
        "data_order": {"l2": l2, "angle": 15 + 55 * settled},
        "barriers": [
            {
                "split": split,
                "recalibrated": 0,
                "height": height,
                "alphas": alphas,
                "errors": [ends + height * 4 * alpha * (1 - alpha) for alpha in alphas],
            }
            for split in ("train", "test")
        ],
        **(
            {
                "layers": [
                    {"name": name, "pruning": l2 / (i + 1), "data_order": l2 / (i + 2)} for i, name in enumerate(LENET)
                ]
            }
            if layers and role != "dense"
            else {}
        ),
    }


def bench_record(*, batches: tuple[int, ...] = (1, 8, 64), curves: bool = False) -> dict[str, Any]:
    """A speed record of a ticket: five dense engines (one missing, one wrong) and layers; or curves."""
    rng = random.Random(4)
    record: dict[str, Any] = {
        "format": 1,
        "kind": "bench-curve" if curves else "bench",
        "name": "bench-0a1b2c3d",
        "run": "iterative-fashion-mnist-3f2a91c0",
        "ticket": ".ticketry/runs/iterative-fashion-mnist-3f2a91c0/tickets/replicate-0-level-08",
        "task": "fashion-mnist",
        "model": "lenet-300-100",
        "density": 0.168,
        "command": "ticketry bench replicate-0-level-08 --batch 1,8,64",
    }
    if curves:
        return {**record, "curves": [_time_curve(rng, batch) for batch in batches]}
    return record | {
        "compile_seconds": 0.31,
        "weight_bytes": 409_000,
        "dense_bytes": 1_066_000,
        "comparisons": [_timed(rng, batch) for batch in batches],
        "layers_batch": batches[-1],
        "layers": [
            _speed_layer("fc1", "engine", 0.15, 0.002),
            _speed_layer("fc2", "engine", 0.4, 0.001),
            _speed_layer("odd", "torch", None, 0.0005) | {"why": "the engine has no kernel for erfinv"},
        ],
    }


def _timed(rng: random.Random, batch: int, sparse: dict[str, float] | None = None) -> dict[str, Any]:
    speeds = {"eager": 1.5, "channels_last": 1.4, "compile": None, "onnxruntime": 1.1, "openvino": 1.0}
    dense = 0.0005 * batch
    times = [
        _engine_time(rng, name, None if factor is None else factor * dense, False) for name, factor in speeds.items()
    ]
    times += [_engine_time(rng, name, factor * dense, True) for name, factor in (sparse or {"ticketry": 0.25}).items()]
    saved = [
        {
            "engine": row["engine"],
            "against": "openvino",
            "saved": 1 - row["seconds"] / dense,
            "low": 0.97 - row["seconds"] / dense,
            "high": 1.02 - row["seconds"] / dense,
            "confidence": 0.9648,
        }
        for row in times
        if row["sparse"]
    ]
    return {
        "batch": batch,
        "precision": "fp32",
        "threads": 1,
        "cores": [2],
        "rounds": 15,
        "cold": False,
        "clock": "wall",
        "times": times,
        "saved": saved,
        "machine": {"processor": "AMD EPYC", "versions": {"torch": "2.13.0", "openvino": "2026.4.1"}},
        "fastest_dense": "openvino",
    }


def _engine_time(rng: random.Random, name: str, seconds: float | None, sparse: bool) -> dict[str, Any]:
    found = {"engine": name, "sparse": sparse, "seconds": seconds, "error": 1e-7, "why": "", "versions": {}}
    if seconds is None:
        return found | {"low": None, "high": None, "wall": [], "why": "no C++ compiler on this machine"}
    return found | {
        "low": 0.98 * seconds,
        "high": 1.03 * seconds,
        "wall": [seconds * rng.uniform(0.95, 1.1) for _ in range(15)],
    }


def _time_curve(rng: random.Random, batch: int) -> dict[str, Any]:
    densities = (0.02, 0.1, 0.5, 1.0)
    timed = _timed(rng, batch, {f"density {density:g}": density + 0.05 for density in densities})
    rows = {row["engine"]: row for row in timed["times"]}
    points = []
    for density, saved in zip(densities, timed["saved"], strict=True):
        row = rows[saved["engine"]]
        points.append(
            {"density": density, "ideal": density * rows["openvino"]["seconds"], "saved": saved["saved"]}
            | {name: row[name] for name in ("seconds", "low", "high")}
        )
    return {"pattern": "unstructured", "points": points, "break_even": 0.5, "comparison": timed}


def _speed_layer(name: str, where: str, density: float | None, seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "linear",
        "where": where,
        "kernel": "sums" if where == "engine" else "",
        "density": density,
        "kept": None,
        "rows": "1" if density else "",
        "seconds": seconds,
        "share": seconds / 0.0035,
        "dense_seconds": 4 * seconds if where == "engine" else None,
        "why": "",
    }


def with_rounds(record: dict[str, Any], rounds: int = 3) -> dict[str, Any]:
    """The record as if each level's masks came from so many rounds of gates; the last round was tried twice."""
    rows = []
    levels = sorted({point["level"] for point in record["points"]} - {0})
    for point in record["points"]:
        if point["role"] == "ticket":
            point.update(search_steps=4300 * (rounds + 1), search_seconds=8.5 * (rounds + 1))
    for replicate in sorted({point["replicate"] for point in record["points"]}):
        for level in levels:
            for number in range(1, rounds + 1):
                rows.append(_round(replicate, level, number, 0.8 ** (level * number / rounds), used=True))
            rows.append(_round(replicate, level, rounds, 0.9 * 0.8 ** (level * (rounds - 1) / rounds), used=False))
    record["rounds"] = rows
    return record


def _round(replicate: int, level: int, number: int, density: float, *, used: bool) -> dict[str, Any]:
    shares = [density + (1 - density) * math.exp(-6 * step / 4300) for step in range(43, 4301, 43)]
    on = round(266200 * density)
    return {
        "replicate": replicate,
        "level": level,
        "used": used,
        "round": number,
        "kind": "continuous",
        "init": round(0.2 - 0.05 * level, 4),
        "penalty": 1e-8,
        "steps": 4300,
        "seconds": 8.5,
        "density": density,
        "soft_density": density + 0.001,
        "ties": 0,
        "validation": {"accuracy": 88.0, "loss": 0.31},
        "soft_validation": {"accuracy": 88.1, "loss": 0.31},
        "path": [[43 * (index + 1), share] for index, share in enumerate(shares)],
        "histogram": [266200 - on, *([7] * 18), on],
        "key": f"{replicate * 1000 + level * 10 + number:064x}",
    }


CONVS = {"conv.weight": (16, 3, 3, 3), "block.conv1.weight": (32, 16, 3, 3), "block.conv2.weight": (64, 32, 3, 3)}


def structured_record(name: str, *, levels: int = 6, rows: int = 16, shift: float = 0.0) -> dict[str, Any]:
    """A search whose masks were put into groups of rows afterwards: coverage falls from level to level."""
    record = search_record(levels=levels, shapes=CONVS, controls=())
    record |= {"run": f"iterative-cifar10-{name}", "settings": {**record["settings"], "structure": "regroup"}}
    for point in record["points"]:
        point["test"]["accuracy"] += shift * (1 - point["density"])
        if point["role"] == "ticket":
            point["ticket"] = f"runs/{record['run']}/tickets/replicate-{point['replicate']}-level-{point['level']:02d}"
            point["structure"] = _structure(point, rows)
    return record


def plain_record(name: str, *, levels: int = 6) -> dict[str, Any]:
    """A record of the same search without structure."""
    record = structured_record(name, levels=levels)
    record["settings"] = {**record["settings"], "structure": "none"}
    for point in record["points"]:
        point.pop("structure", None)
    return record


def benches_of(record: dict[str, Any], factor: float, batches: tuple[int, ...] = (1, 64)) -> list[dict[str, Any]]:
    """A bench record of each ticket of the first replicate, which takes `factor` of the dense time at density 1."""
    rng, found = random.Random(5), []
    for point in record["points"]:
        if point["role"] == "ticket" and point["replicate"] == 0:
            share = factor * point["density"] + 0.08
            bench = bench_record(batches=batches)
            bench |= {
                "name": f"bench-{record['run']}-{point['level']}",
                "run": record["run"],
                "ticket": f"/somewhere/else/{point['ticket']}",
                "density": point["density"],
                "comparisons": [_timed(rng, batch, {"ticketry": share}) for batch in batches],
            }
            found.append(bench)
    return found


def _structure(point: dict[str, Any], rows: int) -> dict[str, Any]:
    density, coverage = point["density"], point["density"] ** 0.3
    layers = [_fit(name, shape[0], math.prod(shape[1:]), rows, density, coverage) for name, shape in CONVS.items()]
    total = _fit("all layers", sum(shape[0] for shape in CONVS.values()), 450, rows, density, coverage)
    told = {
        "kind": "regroup",
        "rows": rows,
        "method": "similarity",
        "name": f"regroup, {rows} rows",
        "density_before": density,
        "layers": [*layers, total],
    }
    return told | ({"pictures": [_layer_picture(density, rows)]} if point["replicate"] == 0 else {})


def _fit(name: str, rows: int, columns: int, size: int, density: float, coverage: float) -> dict[str, Any]:
    return {
        "name": name,
        "rows": rows,
        "columns": columns,
        "groups": -(-rows // size),
        "rows_per_group": min(size, rows),
        "density_before": density,
        "density_after": density,
        "magnitude": 10.0,
        "coverage": coverage,
        "fill": 1 - coverage,
        "null_coverage": 0.97 * coverage,
        "random_coverage": 0.9 * coverage,
    }


def _layer_picture(density: float, size: int) -> dict[str, Any]:
    rng, height, width = random.Random(2), 64, 256
    columns = [[rng.random() < density for _ in range(width)] for _ in range(height // size)]
    bits = {
        "before": [rng.random() < density for _ in range(height * width)],
        "after": [columns[row // size][column] for row in range(height) for column in range(width)],
    }
    return {
        "name": "block.conv2.weight",
        "rows": height,
        "columns": 288,
        "every": 1,
        "shape": [height, width],
        "groups": [size] * (height // size),
        **{when: base64.b64encode(_packed(each)).decode() for when, each in bits.items()},
    }


def _packed(bits: list[bool]) -> bytes:
    return bytes(sum(bit << (7 - place) for place, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """`search_record`, as a fixture because test modules cannot import each other."""
    return search_record


@pytest.fixture(scope="session")
def make_verify() -> Callable[..., dict[str, Any]]:
    """`verify_record`."""
    return verify_record


@pytest.fixture(scope="session")
def make_stability() -> Callable[..., dict[str, Any]]:
    """`stability_record`."""
    return stability_record


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., dict[str, Any]]:
    """`bench_record`."""
    return bench_record


@pytest.fixture(scope="session")
def full_record() -> dict[str, Any]:
    """A run with everything that a record may hold: verdicts, budgets, pictures of the first layer's masks,
    rounds of gates."""
    return with_rounds(with_pictures(add_verdicts(search_record(levels=9))))


@pytest.fixture(scope="session")
def rewind_runs() -> list[dict[str, Any]]:
    """Four runs that differ in their rewind step."""
    return [at_rewind(search_record(levels=10, seed=index), asked) for index, asked in enumerate(REWINDS)]


@pytest.fixture(scope="session")
def many_layers() -> dict[str, tuple[int, ...]]:
    """The shapes of a model of 50 prunable tensors."""
    return resnet50()


@pytest.fixture(scope="session")
def partial_record() -> dict[str, Any]:
    """A run in progress: replicate 2 is behind, one control more so, and costs are not known yet."""
    record = search_record(levels=8)
    record["points"] = [
        point
        for point in record["points"]
        if not (point["replicate"] == 2 and point["level"] > 4)
        and not (point["role"] == "shuffled" and point["level"] > 6)
    ]
    del record["cost"], record["command"], record["config"]
    return record
