"""Density by stage of a network: where a budget leaves hardly any weights. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

LEAST = 0.05
"""Density of a stage below which accuracy is seldom recovered by retraining."""


def stage_of(name: str) -> str:
    """Return the stage of a parameter: its name up to the first numbered part, or else its layer.

    >>> stage_of("blocks.2.1.conv_pw.weight"), stage_of("layer1.0.conv1.weight"), stage_of("conv_head.weight")
    ('blocks.2', 'layer1', 'conv_head')
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part[-1:].isdecimal():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name


def stage_densities(layers: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """Return the density of each stage.

    Args:
        layers: parameter name, weights retained, and all of its weights.
    """
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, retained, size in layers:
        stage = stage_of(name)
        kept[stage] = kept.get(stage, 0) + retained
        total[stage] = total.get(stage, 0) + size
    return {stage: kept[stage] / total[stage] for stage in total if total[stage]}
