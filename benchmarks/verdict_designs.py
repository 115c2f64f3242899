"""Other designs of the verdict "as good as dense": how often each errs in the cells, and finds a true tie.

    python benchmarks/verdict_designs.py --runs 4000 --json designs.json

The cells are those of `verdict_cells.py`, with a true mean of minus the margin. A design is wanted that errs in at most
5 % of verifications in every cell, and finds a true tie (normal differences, a spread of 0.4 points) with ten seeds in
80 %. Designs that do not need to know how differences spread need their range: it is given here, as points around 0,
and values beyond are clipped.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.special import betaincinv, ndtri
from verdict_cells import ALPHA, MARGIN, SEED, SEEDS, SEEN, TARGET, answers, cells, now

from ticketry.evidence import significance as guarded_tests

Design = Callable[[Any, float], Any]
"""Differences of (verifications, seeds), the mean at the edge -> which are said to have a larger one."""
_BETS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


def as_it_is(differences: Any, edge: float) -> Any:
    return answers(differences, edge, now)[0]


def betting(most: float) -> Design:
    """Whether a gambler against the edge ever has 1 / alpha times the stake, by a mixture of constant bets.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024: it holds for every
    distribution in the range, and at any number of seeds.
    """

    def judged(differences: Any, edge: float) -> Any:
        gains = (np.clip(differences, -most, most) - edge)[..., None] * (_BETS / (edge + most))
        wealth = np.exp(np.cumsum(np.log1p(np.maximum(gains, -1 + 1e-12)), axis=1)).mean(axis=-1)
        return (wealth >= 1 / ALPHA).any(axis=1)

    return judged


def bernstein(most: float) -> Design:
    """The empirical Bernstein bound (Maurer and Pontil, 2009), at the last number of seeds alone."""

    def judged(differences: Any, edge: float) -> Any:
        values = np.clip(differences, -most, most)
        n, log = values.shape[1], np.log(2 / ALPHA)
        width = np.sqrt(2 * values.var(axis=1, ddof=1) * log / n) + 7 * 2 * most * log / (3 * (n - 1))
        return values.mean(axis=1) - width > edge

    return judged


def with_rate(fall: float) -> Design:
    """The current design, that says yes only if the margin allows the collapse rate that n seeds cannot exclude.

    Args:
        fall: points that a seed falls at most, as told.
    """

    def judged(differences: Any, edge: float) -> Any:
        rate = 1 - ALPHA ** (1 / differences.shape[1])
        return as_it_is(differences, edge) & (differences.mean(axis=1) - rate * fall > edge)

    return judged


def rate_and_mean(fall: float) -> Design:
    """Half of alpha for the rate of collapse (Clopper-Pearson), half for the mean of the seeds that have not fallen."""

    def judged(differences: Any, edge: float) -> Any:
        centre = np.median(differences, axis=1, keepdims=True)
        scale = 1.4826 * np.median(np.abs(differences - centre), axis=1, keepdims=True)
        fallen = differences < centre - 4 * np.maximum(scale, MARGIN / 3)
        left = (~fallen).sum(axis=1)
        rate = betaincinv(fallen.sum(axis=1) + 1, np.maximum(left, 1e-9), 1 - ALPHA / 2)
        kept = np.where(fallen, np.nan, differences)
        error = np.maximum(np.nanstd(kept, axis=1, ddof=1), MARGIN) / np.sqrt(left)
        return np.nanmean(kept, axis=1) - rate * fall + ndtri(ALPHA / 2) * error > edge

    return judged


def allowing(rate: float, fall: float) -> Design:
    """The current design with other undetected collapses: up to a rate, `fall` margins deep."""

    def judged(differences: Any, edge: float) -> Any:
        with mock.patch.multiple(guarded_tests, UNSEEN_RATE=rate, UNSEEN_FALL=fall):
            return as_it_is(differences, edge)

    return judged


DESIGNS: dict[str, Design] = {
    "as it is": as_it_is,
    **{f"betting, range {most:g}": betting(most) for most in (1.0, 1.5, 2.0, 5.0, 10.0)},
    **{f"empirical Bernstein, range {most:g}": bernstein(most) for most in (1.0, 2.0, 10.0)},
    **{f"as it is, and a bound of the rate, falls to {fall:g}": with_rate(fall) for fall in (1.0, 2.0, 5.0)},
    **{f"rate and mean apart, falls to {fall:g}": rate_and_mean(fall) for fall in (1.0, 5.0)},
    **{
        f"unseen rates to {100 * rate:g} %, falls of {fall:g} margins": allowing(rate, fall)
        for rate, fall in ((0.1, 5), (0.05, 10), (0.05, 20), (0.1, 10), (0.26, 20))
    },
}


def measured(design: Design, runs: int) -> dict[str, Any]:
    """The cells in which it errs too often, and how often it finds a tie."""
    errors = {}
    for cell in cells():
        what = f"{cell.name}, spread {cell.spread}"
        drawn = cell.draw(np.random.default_rng([SEED, zlib.crc32(what.encode())]), (runs, SEEDS))
        errors[what] = 100 * float(design(drawn - MARGIN, -MARGIN).mean())
    found = {}
    for spread in (0.2, 0.3, SEEN, 0.5):
        drawn = spread * np.random.default_rng([SEED, 2]).standard_normal((runs, SEEDS))
        found[f"spread {spread:g}"] = 100 * float(design(drawn, -MARGIN).mean())
    over = {what: error for what, error in errors.items() if error > TARGET}
    return {"found": found, "cells": len(errors), "cells over 5 %": over, "largest error": max(errors.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000, help="verifications a cell")
    parser.add_argument("--json", type=Path, help="where to write all that was found")
    arguments = parser.parse_args()
    found = {}
    for name, design in DESIGNS.items():
        one = found[name] = measured(design, arguments.runs)
        tie = " / ".join(f"{share:.0f}" for share in one["found"].values())
        over = f"{len(one['cells over 5 %'])} of {one['cells']} cells over 5 %, largest {one['largest error']:.1f}"
        print(f"{name:48} tie found {tie} %; {over}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": arguments.runs, "designs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
