"""Settings of every method that needs neither classes nor norms, for trainings of a few steps."""

from __future__ import annotations

from typing import Any

LENGTH = "16it"
TWO: dict[str, Any] = {"density": (0.5, 0.2)}
METHODS: dict[str, dict[str, Any]] = {
    "acdc": {**TWO, "warmup": "3it", "phase": "4it", "end": "12it"},
    "concrete": {**TWO, "objective": "loss", "mask_length": LENGTH, "collapse": "keep"},
    "continuous": {"rounds": 2, "gate_lr": 10.0, "rewind": "10%", "init": 0.05},
    "dynamic": {**TWO, "frequency": "5it"},
    "early": {"density": (0.5,)},
    "gradual": {"density": (0.5,), "frequency": "5it"},
    "iterative": {"levels": 2, "rewind": "3it"},
    "l0": TWO,
    "oneshot": TWO,
    "regularised": TWO,
    "stochastic": {"rounds": 2, "gate_lr": 10.0},
}
