"""Run records made up for tests: the shape of a real run, with numbers from a formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
CONTROLS = ("random_reinit", "shuffled", "random_prune")


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """`search_record`, as a fixture because test modules cannot import each other."""
    return search_record


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
            "replicates": replicates,
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
