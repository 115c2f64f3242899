"""Check verdicts on tickets with a known answer: 20 that cannot win, 20 that do.

LeNet-300-100 on scikit-learn's digits, from another initialisation and search each time:

- a random mask that keeps 2 % of the weights, under a ticket's name: it must be found to lose;
- the ticket at a density of 0.8: it must be found to match the dense network. (That it *wins* cannot be shown there:
  random masks of that density match as well.)

Seeds are added up to a limit of 20; each verification trains all its networks with new seeds. What is trained is
kept in --store, so that a second run only judges again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from common import Row, main, one_thread, parser

import ticketry as tk
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verification import verify
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import default_workers
from ticketry.lab.search_result import Seeds
from ticketry.search import method

CASES, QUICK_CASES = 20, 1
PLAN = (3, 5, 10, 20)
LOSING, WINNING = 0.02, 0.8


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    cases = QUICK_CASES if arguments.quick else CASES
    with (
        tempfile.TemporaryDirectory() as folder,
        Lab(arguments.store or folder, data=arguments.data, workers=default_workers()) as lab,
    ):
        tickets = [ticket_of(lab, seed) for seed in range(cases)]
        losing = [
            verify(lab, losing_of(one), VerifySettings(interim=PLAN, noise=False, references=False)) for one in tickets
        ]
        winning = [
            verify(
                lab,
                one,
                VerifySettings(claim="matches", controls=("none",), interim=PLAN, noise=False, references=False),
            )
            for one in tickets
        ]
    rows = []
    for what, found, right in (
        (f"verdict on a random mask at {LOSING:.0%}, claim wins: loses", losing, "loses"),
        (f"verdict on a ticket at {WINNING:.0%}, claim matches: matches", winning, "matches"),
    ):
        outcomes = [one.verdict.outcome for one in found]
        seeds = sorted(one.verdict.n for one in found)
        told = ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).items())
        how = f"{told}; {seeds[0]} to {seeds[-1]} seeds, margin 0.5 points, confidence 95 %"
        details = {"outcomes": outcomes, "seeds": [one.verdict.n for one in found]}
        count = outcomes.count(right)
        rows.append(Row(what, count, f"of {cases}", at_least=cases, how=how, details=details))
    return rows


def ticket_of(lab: Lab, seed: int) -> tk.Ticket:
    """The ticket at 0.8 of a search from its own seeds."""
    task, chosen = tk.task("digits"), method("iterative")
    settings = chosen.Settings(densities=(WINNING,), rewind="3%")
    record = execute(lab, SearchRequest(chosen, task, settings, task.recipe, replicates=1, seeds=Seeds.of(1000 * seed)))
    return tk.Ticket.load(next(point.ticket for point in record.points if point.role == "ticket"))


def losing_of(ticket: tk.Ticket) -> tk.Ticket:
    """A random mask over the whole scope with the ticket's start."""
    mask = tk.prune(tk.task("digits").build(), density=LOSING, score="random", seed=ticket.info["seeds"]["mask"])
    return tk.Ticket(mask, ticket.start, ticket.info)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--store", type=Path, help="folder in which everything trained is kept")
    return made


if __name__ == "__main__":
    main("known", measure, options())
