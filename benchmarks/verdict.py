"""How often a verdict is wrong, by simulation: false wins at the edge of the claim, and wins missed at a true tie.

A verification has interim analyses at 3, 5, 7 and 10 seeds and stops when it can decide. Differences are drawn from a
normal distribution (and a heavy-tailed one) with the spread of paired differences seen in research; other
distributions are in `verdict_cells.py`. Repeats are all judged at once by the library's tests and levels; some of them
also one by one by `decide_after`, which must agree.
"""

from __future__ import annotations

import argparse
import zlib
from typing import Any

import numpy as np
from common import Row, main, parser
from scipy.stats import binomtest

from ticketry.evidence.comparison import InterimAnalyses
from ticketry.evidence.significance import guarded_p_values
from ticketry.evidence.verdict import decide_after

RUNS, QUICK_RUNS, CHECKED = 2000, 200, 60
SEED = 20261120
MARGIN, ALPHA = 0.5, 0.05
SPREADS = (0.3, 0.4, 0.5)
"""Standard deviations of paired differences, in points."""
CLEAR = 1.5
"""True difference to a control that does lose, in points."""
TARGET_FALSE, TARGET_MISSED = 5.0, 20.0

PLAN = InterimAnalyses()
EVERY = InterimAnalyses(tuple(range(3, 11)))


def measure(arguments: argparse.Namespace) -> list[Row]:
    runs = QUICK_RUNS if arguments.quick else RUNS
    rows = []
    for spread in SPREADS:
        at = f"sd {spread}"
        rows += [
            row(f"false wins, {at}: worse than dense by the margin", runs, -MARGIN, CLEAR, spread, TARGET_FALSE),
            row(f"false wins, {at}: a control as good", runs, 0.0, 0.0, spread, TARGET_FALSE),
            row(f"wins missed, {at}: equal to dense", runs, 0.0, CLEAR, spread, TARGET_MISSED, missed=True),
        ]
    worse, wide = ("worse than dense by the margin", SPREADS[-1])
    rows += [
        row(f"false wins, heavy tails: {worse}", runs, -MARGIN, CLEAR, wide, TARGET_FALSE, heavy=True),
        row(f"false wins, analyses after every seed: {worse}", runs, -MARGIN, CLEAR, wide, TARGET_FALSE, plan=EVERY),
        row("wins missed, analyses after every seed: equal", runs, 0.0, CLEAR, wide, plan=EVERY, missed=True),
        row(f"false wins, every seed, no plan (5 % each time): {worse}", runs, -MARGIN, CLEAR, wide, plan=None),
    ]
    return rows


def row(
    what: str,
    runs: int,
    to_dense: float,
    to_control: float,
    spread: float,
    target: float | None = None,
    *,
    plan: InterimAnalyses | None = PLAN,
    missed: bool = False,
    heavy: bool = False,
) -> Row:
    """One scenario: true differences to the dense network and to a control, both with the same spread."""
    generator = np.random.default_rng([SEED, zlib.crc32(what.encode())])  # each scenario draws its own
    shape = (runs, PLAN.last)
    dense = to_dense + spread * noise(generator, shape, heavy)
    control = to_control + spread * noise(generator, shape, heavy)
    won, seeds = verifications(dense, control, plan)
    if plan is not None:
        check(dense, control, plan, won)
    counted = int((~won).sum() if missed else won.sum())
    low, high = binomtest(counted, runs).proportion_ci(0.95)
    how = f"{runs} verifications, 95 % interval {100 * low:.1f} … {100 * high:.1f}; {seeds.mean():.1f} seeds on average"
    details = {"count": counted, "runs": runs, "spread": spread, "mean_seeds": float(seeds.mean())}
    return Row(what, 100 * counted / runs, "%", target=target, how=how, details=details)


def noise(generator: np.random.Generator, shape: tuple[int, int], heavy: bool) -> Any:
    """Mean 0, standard deviation 1: normal, or Student's t with 5 degrees of freedom."""
    return generator.standard_t(5, shape) / (5 / 3) ** 0.5 if heavy else generator.standard_normal(shape)


def verifications(dense: Any, control: Any, plan: InterimAnalyses | None) -> tuple[Any, Any]:
    """Whether each row of differences wins, and after how many seeds it was decided."""
    interim = EVERY if plan is None else plan
    levels = dict.fromkeys(interim.at, ALPHA) if plan is None else interim.alphas(ALPHA)
    runs = len(dense)
    good, bad, better, worse = (np.zeros(runs, bool) for _ in range(4))
    seeds = np.full(runs, interim.last)
    for n, level in levels.items():
        still = ~(bad | ((good | bad) & (better | worse)))
        for yes, no, part, null in ((good, bad, dense, -MARGIN), (better, worse, control, 0.0)):
            shown, refuted = guarded_p_values(part[:, :n], null, MARGIN)
            unanswered = still & ~(yes | no)
            yes |= unanswered & (shown <= level)
            no |= unanswered & ~yes & (refuted <= level)
        seeds[still & (bad | (good & (better | worse)))] = n
    return good & better, seeds


def check(dense: Any, control: Any, plan: InterimAnalyses, won: Any) -> None:
    """End the benchmark if the library judges some of the rows differently."""
    ticket = np.full(plan.last, 50.0)
    for index in range(min(CHECKED, len(won))):
        controls = {"control": ticket - control[index]}
        found = decide_after(ticket, ticket - dense[index], controls, interim=plan, margin=MARGIN, confidence=1 - ALPHA)
        if found.shown != won[index]:
            raise SystemExit(f"verification {index} is {found.outcome} by decide_after, but won is {won[index]} here")


if __name__ == "__main__":
    main("verdict", measure, parser(__doc__ or ""))
