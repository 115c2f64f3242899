"""Which networks of several runs stand in one table: those of nearly the same density, and what else differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ticketry.records.network import TICKET
from ticketry.report.tables.results import Group, Results
from ticketry.report.wording import value

TOLERANCE = 0.05
"""As a share of the density that was asked for."""
_MEASURED_BY = ("device", "processor", "precision", "threads_per_segment", "devices", "workers", "kernels")
"""Of the environment: what seconds, memory and energy depend on."""
_UNTOLD = {"kernels": "dense", "devices": 1}
"""What holds where a record tells nothing of it."""


@dataclass(frozen=True)
class Match:
    """One density, and the tickets of the runs that reached it."""

    density: float
    """As asked for by some run: a share of the prunable weights."""
    members: tuple[tuple[int, Group], ...]
    """(place among the runs, its tickets)."""
    nearest: tuple[tuple[int, float], ...]
    """(place, density) of the other runs, as far as they have tickets."""


def matches(runs: Sequence[Results]) -> list[Match]:
    """A match for each density asked for that at least two runs reached within the tolerance, the densest first."""
    return [match for density in _all_asked(runs) if len((match := _match(runs, density)).members) > 1]


def unmatched(runs: Sequence[Results]) -> list[float]:
    """The densities asked for that fewer than two runs reached within the tolerance."""
    return [density for density in _all_asked(runs) if len(_match(runs, density).members) < 2]


def _match(runs: Sequence[Results], density: float) -> Match:
    members, others = [], []
    for place, results in enumerate(runs):
        near = min(results.of_role(TICKET), key=lambda group: abs(group.density - density), default=None)
        if near is None:
            continue
        if abs(near.density - density) <= TOLERANCE * density:
            members.append((place, near))
        else:
            others.append((place, near.density))
    return Match(density, tuple(members), tuple(others))


def _all_asked(runs: Sequence[Results]) -> list[float]:
    """Falling, without those that are nearly the one before."""
    kept: list[float] = []
    for density in sorted({one for results in runs for one in asked(results)}, reverse=True):
        if not kept or abs(density - kept[-1]) > TOLERANCE * kept[-1]:
            kept.append(density)
    return kept


def asked(results: Results) -> list[float]:
    """The densities that a run was asked for; of a method that has some by default, those reached; else none."""
    settings = results.run.settings
    kept, removed = _numbers(settings.get("density")), [1 - share for share in _numbers(settings.get("sparsity"))]
    if kept or removed:
        return kept or removed
    if isinstance(settings.get("density"), list | tuple):
        return [group.density for group in results.of_role(TICKET)]
    return []


def schedules(labels: Sequence[str], runs: Sequence[Results], groups: Sequence[Group]) -> list[str]:
    """How the training of the runs differs, ``lr: 0.1 (one), 0.05 (other)``; empty if it is the same."""
    recipes = [results.run.recipe for results in runs]
    keys = [key for key in recipes[0] if all(key in recipe for recipe in recipes)]
    told = [(key, [recipe[key] for recipe in recipes]) for key in keys]
    told.append(("steps of the schedule", [results.run.steps.total for results in runs]))
    told.append(("training steps in the weights", [_budget(group) for group in groups]))
    return _differing(labels, told)


def conditions(labels: Sequence[str], runs: Sequence[Results]) -> list[str]:
    """How the machines and their use differ; empty if they are the same."""
    environments = [results.run.environment for results in runs]
    return _differing(
        labels,
        [(key.replace("_", " "), [one.get(key, _UNTOLD.get(key)) for one in environments]) for key in _MEASURED_BY],
    )


def _differing(labels: Sequence[str], told: Sequence[tuple[str, Sequence[Any]]]) -> list[str]:
    texts = []
    for name, values in told:
        found: dict[str, list[str]] = {}
        for label, item in zip(labels, values, strict=True):
            found.setdefault("not told" if item is None else value(item), []).append(label)
        if len(found) > 1:
            texts.append(f"{name}: " + ", ".join(f"{item} ({'; '.join(those)})" for item, those in found.items()))
    return texts


def _budget(group: Group) -> int | None:
    budgets = {point.budget for point in group.points.values()}
    return max((one for one in budgets if one is not None), default=None) if None not in budgets else None


def _numbers(item: Any) -> list[float]:
    found = item if isinstance(item, list | tuple) else [item]
    return [float(x) for x in found if isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1]
