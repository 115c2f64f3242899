"""Cost of a requested density with Continuous Sparsification: `--density` against a search with a given s0.

For each target a whole search of `--rounds` rounds. Reported are the densities of the last tickets (greatest relative
error) and the steps of the search against those of one with a given s0: rounds alone (what `Found.search_steps` has),
and rounds and tickets (what a user waits for). Each target has a separate store, so that nothing is shared. All results
are counts, not times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from common import Row, main, parser

import ticketry as tk
from ticketry.lab.search_result import Seeds

TARGETS = (0.5, 0.2, 0.1, 0.05, 0.02)


def measure(arguments: argparse.Namespace) -> list[Row]:
    rows = []
    for name, length, gate_lr in (("digits", "20ep", 3.0), ("fashion-mnist", arguments.length, arguments.gate_lr)):
        if arguments.quick and name != "digits":
            continue
        task = tk.task(name)
        recipe = task.recipe.changed(length=length)
        found = [
            one_search(task, recipe, density, gate_lr, arguments, seed)
            for density in TARGETS
            for seed in range(1 if arguments.quick else arguments.replicates)
        ]
        rows += rows_of(f"{name}, {length} a round", found, arguments.rounds)
    return rows


def one_search(
    task: tk.Task, recipe: tk.Recipe, density: float, gate_lr: float, arguments: argparse.Namespace, seed: int
) -> tuple[float, int, int, float, float]:
    """(target, rounds trained, rounds with s0 given, density found, steps of rounds and tickets over the latter's)."""
    settings = tk.search.continuous.Settings(density=density, rounds=arguments.rounds, gate_lr=gate_lr)
    with tempfile.TemporaryDirectory() as folder, tk.Lab(Path(folder), data=arguments.data) as lab:
        (found,) = tk.search.continuous(lab, task, settings, recipe=recipe, seeds=Seeds.of(seed))
        last = found[-1]
        reached = lab.store.get_mask(last.mask).density
    tickets = sum(item.result.segment.steps for item in found[1:])
    single = arguments.rounds * last.searched[-1].segment.steps
    whole = (last.search_steps + tickets) / (single + tickets)
    return density, len(last.searched), arguments.rounds, reached, whole


def rows_of(what: str, found: list[tuple[float, int, int, float, float]], rounds: int) -> list[Row]:
    errors = [abs(reached / target - 1) for target, _, _, reached, _ in found]
    costs = [tried / single for _, tried, single, _, _ in found]
    whole = [one[-1] for one in found]
    told = ", ".join(f"{target:g}: {100 * reached:.2f} % in {tried}" for target, tried, _, reached, _ in found)
    return [
        Row(f"density found / asked for, worst: {what}", 1 + max(errors), target=1.1, how=told),
        Row(
            f"rounds of a search for a density / with s0 given ({rounds}), worst: {what}",
            max(costs),
            target=1.5,
            how=f"mean {statistics.fmean(costs):.2f}, median {statistics.median(costs):.2f}",
        ),
        Row(
            f"… steps of rounds and tickets, worst: {what}",
            max(whole),
            target=1.5,
            how=f"mean {statistics.fmean(whole):.2f}",
        ),
    ]


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--replicates", type=int, default=2)
    options.add_argument("--length", default="3ep", help="of a round on Fashion-MNIST")
    options.add_argument("--gate-lr", type=float, default=3.0, help="on Fashion-MNIST")
    main("density", measure, options)
