"""How often verdicts by level are wrong, and how often they find that a ticket is as good as the dense network.

A search has several levels, each judged over the same replicates and corrected together by Holm
(`ticketry.evidence.significance`). Two kinds of rows:

- differences drawn from distributions: normal ones that share part of their variance between levels, a last level with
  three times the standard deviation, and 5 % of collapses, of single networks or of whole replicates;
- real residuals: differences of the searches in research/bundles, less the mean of each level. Replicates are drawn
  with replacement and smoothed (a normal of the same covariance is added, and both are scaled back), since five draws
  from ten values contain duplicates that no training has.

"Error": the true difference of all levels is minus the margin, and some level is called as good. "Found": it is 0, and
this share of levels is called as good. "Beside lost levels": levels whose mean is more than 3 margins below dense keep
that mean, and the others are at minus the margin, or at 0.

    python benchmarks/verdict_levels.py                     # 4,000 searches a row
    python benchmarks/verdict_levels.py --json levels.json
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, main, parser
from scipy.special import stdtr

from ticketry.evidence.significance import (
    LOST,
    POOLED_LEVELS,
    SD_FLOOR,
    UNSEEN_FALL,
    guarded_p_values,
    pool_sd,
    pooled_p_values,
    unseen_collapse_p_value,
)
from ticketry.evidence.verdict import holm
from ticketry.lab.store.bundle import Bundle

RUNS, QUICK_RUNS, CHECKED = 4000, 300, 20
SEED = 20261130
MARGIN, ALPHA, TARGET = 0.5, 0.05, 5.0
REPLICATES = (3, 5)
SMOOTHING = 0.5
"""Standard deviation of the added normal, as a share of that of the residuals."""
LEAST_REPLICATES, LEAST_LEVELS = 8, 3
"""Least replicates and levels of a search whose residuals are used."""
RESULTS = Path(__file__).resolve().parents[1] / "research" / "bundles"

Draw = Callable[[np.random.Generator, int, int], Any]
"""(searches, replicates) -> differences of shape (searches, levels, replicates)."""
Rule = Callable[[Any, float], Any]
"""Differences and the edge of the hypothesis -> p-values of shape (searches, levels)."""


# -- the rules ---------------------------------------------------------------------------------------------------------


def pooled(differences: Any, edge: float) -> Any:
    """The library's rule, for all searches at once; `check` compares it with the library."""
    n = differences.shape[2]
    near = np.abs(np.median(differences, axis=2)) < LOST * MARGIN
    variances = differences.var(axis=2, ddof=1)
    count = near.sum(axis=1, keepdims=True)
    of_all = (variances * near).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(np.maximum(variances, of_all), (SD_FLOOR * MARGIN) ** 2))
    distance = differences.mean(axis=2) - edge
    students = stdtr(np.clip(count, 1, POOLED_LEVELS) * (n - 1), -distance / (spread / np.sqrt(n)))
    return np.maximum(students, unseen_collapse_p_value(distance, n, UNSEEN_FALL * MARGIN, spread))


def level_by_level(differences: Any, edge: float) -> Any:
    """The rule of earlier versions."""
    return guarded_p_values(differences, edge, MARGIN)[0]


def students(differences: Any, edge: float) -> Any:
    """Student's t alone."""
    n = differences.shape[2]
    error = np.maximum(differences.std(axis=2, ddof=1), 1e-9) / np.sqrt(n)
    return stdtr(n - 1, -(differences.mean(axis=2) - edge) / error)


RULES: dict[str, Rule] = {"pooled": pooled, "level by level": level_by_level, "Student's t": students}


def called_as_good(p_values: Any) -> Any:
    """Which levels Holm's procedure rejects at alpha."""
    count = p_values.shape[1]
    order = np.argsort(p_values, axis=1)
    rising = np.take_along_axis(p_values, order, axis=1)
    rejected = np.cumprod(rising <= ALPHA / (count - np.arange(count)), axis=1).astype(bool)
    found = np.zeros_like(rejected)
    np.put_along_axis(found, order, rejected, axis=1)
    return found


def check(differences: Any) -> None:
    """End the benchmark if the library finds other p-values."""
    for levels, found in zip(differences[:CHECKED], pooled(differences[:CHECKED], -MARGIN), strict=True):
        sd = pool_sd([list(one) for one in levels], MARGIN)
        own = []
        for one in levels:
            spread = max(float(np.std(one, ddof=1)), sd.sd, sd.floor)
            own.append(pooled_p_values(float(np.mean(one)) + MARGIN, spread, len(one), sd)[0])
        agree = np.array_equal(called_as_good(found[None])[0], np.asarray(holm(own)) <= ALPHA)
        if not (agree and np.allclose(own, found)):
            raise SystemExit(f"the library's p-values are {own}, but {found.tolist()} here")


# -- differences -------------------------------------------------------------------------------------------------------


def normal(
    levels: int,
    spread: float = 0.3,
    shared: float = 0.5,
    *,
    last: float = 1.0,
    rate: float = 0.0,
    fall: float = 0.0,
    whole: bool = False,
) -> Draw:
    """Normal differences with a mean of 0.

    Args:
        shared: of the variance, between the levels of a replicate.
        last: how many times as large the last level's standard deviation is.
        rate: of networks that fall by `fall`; the mean is 0 with them.
        whole: all networks of a replicate fall together.
    """
    scale = np.ones(levels)
    scale[-1] = last

    def draw(random: np.random.Generator, searches: int, n: int) -> Any:
        own, common = random.standard_normal((searches, levels, n)), random.standard_normal((searches, 1, n))
        found = spread * scale[:, None] * (shared**0.5 * common + (1 - shared) ** 0.5 * own)
        fallen = random.random((searches, 1 if whole else levels, n)) < rate
        return found + fall * (rate - fallen)

    return draw


def resampled(differences: Any) -> Draw:
    """Whole replicates of a search, with a mean of 0 at each level."""
    residuals = differences - differences.mean(axis=0)
    count, levels = residuals.shape
    covariance = residuals.T @ residuals / count
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))

    def draw(random: np.random.Generator, searches: int, n: int) -> Any:
        chosen = residuals[random.integers(0, count, (searches, n))]
        smooth = random.standard_normal((searches, n, levels)) @ root.T
        return ((chosen + SMOOTHING * smooth) / np.sqrt(1 + SMOOTHING**2)).transpose(0, 2, 1)

    return draw


def stored() -> Iterator[tuple[str, Any]]:
    """Searches in research/bundles with enough replicates and levels, with their differences (replicates, levels)."""
    found: dict[str, dict[Any, Any]] = {}
    for bundle in sorted(RESULTS.glob("*.tkz")):
        with Bundle(bundle) as opened:
            for part, data in opened.parts():
                if part.kind == "run":
                    _add(json.loads(data), found)
    for told in sorted(found):
        rows = list(found[told].values())
        levels = max({len(row) for row in rows}, key=lambda count: sum(len(row) == count for row in rows))
        complete = np.array([row for row in rows if len(row) == levels])
        if len(complete) >= LEAST_REPLICATES and levels >= LEAST_LEVELS:
            network, method = json.loads(told)[:2]
            digest = f"{zlib.crc32(told.encode()):08x}"[:4]
            yield f"{network}, {method} {digest}, {len(complete)} replicates, {levels} levels", complete


def _add(record: dict[str, Any], found: dict[str, dict[Any, Any]]) -> None:
    """Add a run's replicates to those of the same network, method, settings and recipe."""
    metric = record["task"]["metric"]
    if metric.get("unit") != "%":
        return
    told = json.dumps([record["task"]["model"], *(record[name] for name in ("method", "settings", "recipe"))])
    points = {(one["level"], one["role"], one["replicate"]): one for one in record["points"]}
    for replicate in sorted({number for _, _, number in points}):
        dense = points.get((0, "dense", replicate))
        levels = sorted(level for level, role, number in points if (role, number) == ("ticket", replicate))
        if dense is None or not levels:
            continue
        value = dense["test"][metric["name"]]
        row = tuple(points[level, "ticket", replicate]["test"][metric["name"]] - value for level in levels)
        found.setdefault(told, {})[dense.get("key", ""), value] = row  # one that several bundles hold counts once


# -- rows --------------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> list[Row]:
    searches = QUICK_RUNS if arguments.quick else arguments.runs
    rows = list(acceptance(searches))
    for name, draw in scenarios():
        rows += both(name, draw, searches)
    for name, differences in stored():
        rows += both(name, resampled(differences), searches, own=differences.std(axis=0, ddof=1))
        rows += beside_lost(name, differences, searches)
    return rows


def acceptance(searches: int) -> Iterator[Row]:
    """14 levels, five replicates, a standard deviation of 0.3 points."""
    for name, more in (("", {}), (", 5 % collapse by 2.5 points", {"rate": 0.05, "fall": 2.5})):
        draw = normal(14, **more)
        yield row(f"error, 14 levels, sd 0.3{name}", draw, searches, 5, -MARGIN, target=TARGET)
    yield row("found, 14 levels, sd 0.3", normal(14), searches, 5, 0.0, at_least=25.0)


def scenarios() -> Iterator[tuple[str, Draw]]:
    for levels in (1, 2, 3, 5, 14):
        for shared in (0.0, 0.5, 0.9):
            yield f"normal, {levels} levels, {100 * shared:g} % shared", normal(levels, shared=shared)
        yield f"normal, {levels} levels, sd 0.5", normal(levels, 0.5)
        yield f"last level's sd triples, {levels} levels", normal(levels, last=3.0)
        for fall in (1.5, 2.5, 5.0):
            yield f"5 % of networks fall by {fall:g}, {levels} levels", normal(levels, rate=0.05, fall=fall)
            whole = normal(levels, rate=0.05, fall=fall, whole=True)
            yield f"5 % of replicates fall by {fall:g}, {levels} levels", whole


def both(name: str, draw: Draw, searches: int, own: Any = None) -> Iterator[Row]:
    for n in REPLICATES:
        target = TARGET if n == max(REPLICATES) else None
        yield row(f"error, {name}, n = {n}", draw, searches, n, -MARGIN, target=target, own=own)
        yield row(f"found, {name}, n = {n}", draw, searches, n, 0.0, own=own)


def beside_lost(name: str, differences: Any, searches: int) -> Iterator[Row]:
    means = differences.mean(axis=0)
    near = means > -3 * MARGIN
    if near.all() or not near.any():
        return
    draw = resampled(differences)
    for n in REPLICATES:
        for what, true in (("error", -MARGIN), ("found", 0.0)):
            named, shift = f"{what}, {name}, beside lost levels, n = {n}", np.where(near, true, means)
            yield row(named, draw, searches, n, shift, judged=near, target=TARGET if what == "error" else None)


def row(
    what: str,
    draw: Draw,
    searches: int,
    n: int,
    true: Any,
    *,
    judged: Any = slice(None),
    target: float | None = None,
    at_least: float | None = None,
    own: Any = None,
) -> Row:
    """Searches whose levels have these true differences: how many have a level called as good, or which share."""
    random = np.random.default_rng([SEED, zlib.crc32(what.encode())])
    differences = draw(random, searches, n) + np.atleast_1d(true)[None, :, None]
    check(differences)
    found = {}
    for name, rule in RULES.items():
        words = called_as_good(rule(differences, -MARGIN))[:, judged]
        found[name] = 100 * float(words.any(axis=1).mean() if what.startswith("error") else words.mean())
    others = "; ".join(f"{name} {value:.1f}" for name, value in found.items() if name != "pooled")
    details = {"rules": found, "searches": searches, **({} if own is None else {"sd": [round(x, 3) for x in own]})}
    how = f"{searches} searches; {others}"
    return Row(what, found["pooled"], "%", target=target, at_least=at_least, how=how, details=details)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--runs", type=int, default=RUNS, help="searches a row")
    main("verdict_levels", measure, arguments)
