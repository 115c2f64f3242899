"""How often a verdict is wrong, by how the differences of seeds are distributed: a cell for each way and severity.

Differences have a true mean of exactly minus the margin (false "as good as dense", false "not as good") or of 0 against
a control (false "better"); their centre, spread and dependence are the cell's. Verifications look at 3, 5, 7 and 10
seeds and stop when both questions are answered. All are judged at once by the library's own tests (`guarded`) and
levels, and once more by the plain t tests that were used before; some are also judged one by one by `decide_after`,
which must agree.

"No test below" is the Neyman-Pearson bound: of all procedures with ten seeds that find a true tie (normal differences,
spread 0.4) with a probability of 80 %, none errs less in this cell. Where it is above 5 %, 5 % cannot be reached.

    python benchmarks/verdict_cells.py                 # 4,000 verifications a cell
    python benchmarks/verdict_cells.py --runs 20000 --json cells.json
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Row, main, parser
from scipy.stats import multivariate_normal, norm

from ticketry.evidence.comparison import InterimAnalyses, one_sided_p_values
from ticketry.evidence.significance import guarded_p_values
from ticketry.evidence.verdict import decide_after

RUNS, QUICK_RUNS, CHECKED = 4000, 200, 10
SEED = 20261122
MARGIN, ALPHA, TARGET = 0.5, 0.05, 5.0
SPREADS = (0.3, 0.4, 0.5)
WIDE = (1.0, 2.0)
"""Spreads at which the least spread, the margin, protects no more."""
SEEN, POWER, BOUND_RUNS = 0.4, 80.0, 40_000
CLEAR = 1.5
"""True difference to a control that does lose, in points."""
PLAN = InterimAnalyses()
SEEDS = PLAN.last

Draw = Callable[[np.random.Generator, tuple[int, int]], Any]
"""Differences of (verifications, seeds) with a mean of 0."""
Test = Callable[[Any, float], tuple[Any, Any]]


@dataclass(frozen=True)
class Cell:
    """A distribution of differences and what is known of it."""

    name: str
    spread: float
    draw: Draw
    density: Callable[[Any], Any] | None = None
    """Density of one seed around the mean, for the bound."""
    covariance: Any = None
    """Covariance of normal seeds, for the bound."""


# -- the cells ---------------------------------------------------------------------------------------------------------


def cells() -> list[Cell]:
    """All cells, at each spread."""
    made = []
    for spread in SPREADS:
        made += [
            Cell(
                "normal",
                spread,
                lambda g, shape, s=spread: s * g.standard_normal(shape),
                covariance=independent(spread),
            ),
            Cell(
                "heavy tails (t, 5 df)", spread, lambda g, shape, s=spread: s * g.standard_t(5, shape) / (5 / 3) ** 0.5
            ),
            Cell("uniform", spread, lambda g, shape, s=spread: s * 12**0.5 * (g.random(shape) - 0.5)),
            Cell("exponential, tail below", spread, lambda g, shape, s=spread: s * (1 - g.standard_exponential(shape))),
            Cell("exponential, tail above", spread, lambda g, shape, s=spread: s * (g.standard_exponential(shape) - 1)),
            Cell("log-normal (0.5), tail below", spread, log_normal(spread, 0.5)),
            Cell("log-normal (1), tail below", spread, log_normal(spread, 1.0)),
            Cell("log-normal (1), tail above", spread, log_normal(spread, 1.0, side=1)),
        ]
        for rate, fall in ((0.02, 5), (0.02, 10), (0.03, 5), (0.05, 2), (0.05, 3), (0.05, 4), (0.05, 5)):
            made.append(collapse(spread, rate, fall))
        made += [collapse(spread, 0.1, fall) for fall in (1.5, 2, 3, 5)]
        made.append(collapse(spread, 0.05, 3, side=1))
        made += [two_modes(spread, share) for share in (0.5, 0.2, 0.1)]
        made += [whole(spread, step) for step in (0.1, 0.25)]
        made += [auto_regression(spread, rho) for rho in (0.3, 0.6)]
        made += [parents(spread, share, 1) for share in (0.2, 0.35, 0.5)]
        made += [parents(spread, share, 2) for share in (0.3, 0.5, 0.8)]
    for spread in WIDE:
        made += [
            Cell("exponential, tail below", spread, lambda g, shape, s=spread: s * (1 - g.standard_exponential(shape))),
            Cell("log-normal (1), tail below", spread, log_normal(spread, 1.0)),
            auto_regression(spread, 0.6),
        ]
    return made


def independent(spread: float) -> Any:
    return spread**2 * np.eye(SEEDS)


def log_normal(spread: float, sigma: float, side: int = -1) -> Draw:
    mean = np.exp(sigma**2 / 2)
    scale = side * spread / (mean * np.sqrt(np.exp(sigma**2) - 1))
    return lambda g, shape: scale * (np.exp(sigma * g.standard_normal(shape)) - mean)


def collapse(spread: float, rate: float, fall: float, side: int = -1) -> Cell:
    """Return normal seeds; a share `rate` of them falls by `fall` points (side 1: rises)."""
    whose = "tickets" if side < 0 else "dense networks"
    centre = -side * rate * fall

    def draw(g: np.random.Generator, shape: tuple[int, int]) -> Any:
        return centre + spread * g.standard_normal(shape) + side * fall * (g.random(shape) < rate)

    def density(x: Any) -> Any:
        return (1 - rate) * norm.pdf(x, centre, spread) + rate * norm.pdf(x, centre + side * fall, spread)

    return Cell(f"{100 * rate:g} % of {whose} collapse by {fall:g}", spread, draw, density)


def two_modes(spread: float, share: float) -> Cell:
    """Return seeds with a share in a lower mode; nine tenths of the variance are between the modes."""
    apart = spread * np.sqrt(0.9 / (share * (1 - share)))

    def draw(g: np.random.Generator, shape: tuple[int, int]) -> Any:
        return spread * np.sqrt(0.1) * g.standard_normal(shape) - apart * ((g.random(shape) < share) - share)

    return Cell(f"two modes, {100 * share:g} % in the lower", spread, draw)


def whole(spread: float, step: float) -> Cell:
    """Differences are whole numbers of test examples, each so many points."""
    return Cell(
        f"discrete, {step:g} points an example",
        spread,
        lambda g, shape: np.round((spread * g.standard_normal(shape) - MARGIN) / step) * step + MARGIN,
    )


def auto_regression(spread: float, rho: float) -> Cell:
    """Each seed hangs on the one before."""
    covariance = spread**2 * rho ** np.abs(np.subtract.outer(np.arange(SEEDS), np.arange(SEEDS)))
    return normal(f"correlated in order, AR({rho:g})", spread, covariance)


def parents(spread: float, share: float, count: int) -> Cell:
    """Seeds of one parent, or of two in turns, which makes up a share of the variance."""
    of = np.arange(SEEDS) % count
    same = of[:, None] == of[None, :]
    word = "one parent for all" if count == 1 else f"{count} parents"
    return normal(
        f"{word}, {100 * share:g} % of the variance", spread, spread**2 * (share * same + (1 - share) * np.eye(SEEDS))
    )


def normal(name: str, spread: float, covariance: Any) -> Cell:
    root = np.linalg.cholesky(covariance)
    return Cell(name, spread, lambda g, shape: g.standard_normal(shape) @ root.T, covariance=covariance)


# -- judging -----------------------------------------------------------------------------------------------------------


def now(differences: Any, null: float) -> tuple[Any, Any]:
    return guarded_p_values(differences, null, MARGIN)


def student_t(differences: Any, null: float) -> tuple[Any, Any]:
    """Student's t alone; a spread of nothing decides nothing."""
    spread = differences.std(axis=1, ddof=1)
    sides = one_sided_p_values(differences.mean(axis=1), np.maximum(spread, 1e-12), differences.shape[1], null)
    return tuple(np.where(spread > 1e-9, side, 1.0) for side in sides)  # type: ignore[return-value]


def answers(differences: Any, null: float, test: Test) -> tuple[Any, Any, Any]:
    """Which rows are answered yes, which no, and after how many seeds, at the first analysis that answers."""
    yes, no = np.zeros(len(differences), bool), np.zeros(len(differences), bool)
    seeds = np.full(len(differences), SEEDS)
    for n, level in PLAN.alphas(ALPHA).items():
        shown, refuted = test(differences[:, :n], null)
        still = ~(yes | no)
        yes |= still & (shown <= level)
        no |= still & ~yes & (refuted <= level)
        seeds[still & (yes | no)] = n
    return yes, no, seeds


def bound(cell: Cell) -> float | None:
    """The least share of false "as good" of any test with the power at a true tie; None where it is not reckoned."""
    generator = np.random.default_rng([SEED, 1])
    tie = SEEN * generator.standard_normal((BOUND_RUNS, SEEDS))
    edge = cell.draw(generator, (BOUND_RUNS, SEEDS)) - MARGIN
    if cell.covariance is not None:
        likelihood = multivariate_normal(np.full(SEEDS, -MARGIN), cell.covariance).logpdf
    elif cell.density is not None:
        of_one = cell.density

        def likelihood(x: Any) -> Any:
            return np.log(of_one(x + MARGIN) + 1e-300).sum(axis=1)
    else:
        return None
    ratios = [likelihood(x) - norm.logpdf(x, 0, SEEN).sum(axis=1) for x in (tie, edge)]
    return 100 * float((ratios[1] <= np.quantile(ratios[0], POWER / 100)).mean())


def measure(arguments: argparse.Namespace) -> list[Row]:
    runs = QUICK_RUNS if arguments.quick else arguments.runs
    return [row(cell, runs) for cell in cells()] + powers(runs)


def row(cell: Cell, runs: int) -> Row:
    """The most frequent of the false answers of a cell, and all of them."""
    what = f"{cell.name}, spread {cell.spread}"
    generator = np.random.default_rng([SEED, zlib.crc32(what.encode())])  # each cell draws its own
    dense, control = (cell.draw(generator, (runs, SEEDS)) for _ in range(2))
    found: dict[str, float] = {}
    for word, test in (("before", student_t), ("now", now)):
        good, bad, _ = answers(dense - MARGIN, -MARGIN, test)
        better, _, _ = answers(control, 0.0, test)
        wins = good & answers(control + CLEAR, 0.0, test)[0]
        for name, those in (("as good", good), ("not as good", bad), ("better", better), ("wins", wins)):
            found[f"{name}, {word}"] = 100 * float(those.mean())
        if test is now:
            check(dense - MARGIN, good, bad)
    least = bound(cell)
    told = "; ".join(
        f"{name} {found[f'{name}, before']:.1f} → {found[f'{name}, now']:.1f}"
        for name in ("as good", "not as good", "better", "wins")
    )
    how = f"false, before → now: {told}" + ("" if least is None else f"; no test below {least:.1f}")
    worst = max(found[f"{name}, now"] for name in ("as good", "not as good", "better", "wins"))
    return Row(what, worst, "%", target=TARGET, how=how, details=found | {"bound": least, "runs": runs})


def powers(runs: int) -> list[Row]:
    """How often a true tie is found, by spread; by number of seeds, judged once, at the spread seen."""
    rows = []
    for spread in (0.2, 0.3, 0.4, 0.5, 0.6):
        drawn = spread * np.random.default_rng([SEED, 2]).standard_normal((runs, SEEDS))
        good, _, seeds = answers(drawn, -MARGIN, now)
        old, _, old_seeds = answers(drawn, -MARGIN, student_t)
        how = f"{seeds.mean():.1f} seeds; before {100 * old.mean():.1f} % with {old_seeds.mean():.1f}"
        least = POWER if spread == SEEN else None
        rows.append(
            Row(f"a true tie is found, spread {spread}", 100 * float(good.mean()), "%", at_least=least, how=how)
        )
    for n in (5, 7, 8, 10, 12, 15, 20):
        drawn = SEEN * np.random.default_rng([SEED, 3]).standard_normal((runs, n))
        found = 100 * float((now(drawn, -MARGIN)[0] <= ALPHA).mean())
        rows.append(Row(f"a true tie is found, spread {SEEN}, {n} seeds judged once", found, "%"))
    return rows


def check(differences: Any, good: Any, bad: Any) -> None:
    """End the benchmark if the library judges some of the rows differently."""
    ticket = np.full(SEEDS, 50.0)
    for index in range(min(CHECKED, len(good))):
        found = decide_after(ticket + differences[index], ticket, interim=PLAN, claim="matches", margin=MARGIN)
        word = "yes" if good[index] else "no" if bad[index] else "undecided"
        if found.as_good_as_dense != word:
            raise SystemExit(f"verification {index} is {found.as_good_as_dense} by decide_after, and {word} here")


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--runs", type=int, default=RUNS, help="verifications a cell")
    return made


if __name__ == "__main__":
    main("verdict_cells", measure, options())
