"""Cost of tickets of several densities from one command, compared with one command for each.

Continuous Sparsification with seven s0, one round, tickets trained: one search with worker processes (`--init` with
seven values) against seven searches with one s0 each, one after another, with as many threads as there are workers.
Either side has one store, so that the dense network is trained once; starting the workers is counted. Wall time:
nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from common import Row, alternating, main, parser, ratio_row, timed

import ticketry as tk
from ticketry.lab.search_result import Seeds

INITS = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
CORES = 2
GATE_LR = 3.0
ROUNDS, QUICK_ROUNDS = 2, 1


def measure(arguments: argparse.Namespace) -> list[Row]:
    task = tk.task("digits" if arguments.quick else "fashion-mnist")
    recipe = task.recipe.changed(length="20it" if arguments.quick else arguments.length)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    densities: list[list[float]] = []

    def case(searches: tuple[tuple[float, ...], ...], **options: Any) -> Callable[[], float]:
        seeds = count()

        def sample() -> float:
            seed = Seeds.of(next(seeds))
            with tempfile.TemporaryDirectory() as folder:

                def search() -> None:
                    kept = []
                    for inits in searches:
                        with tk.Lab(Path(folder), data=arguments.data, device="cpu", **options) as lab:
                            settings = tk.search.continuous.Settings(init=inits, rounds=1, rewind="1%", gate_lr=GATE_LR)
                            (found,) = tk.search.continuous(lab, task, settings, recipe=recipe, seeds=seed)
                            kept += [lab.store.get_mask(one.mask).density for one in found[1:]]
                    densities.append(kept)

                return timed(search, time.perf_counter)

        return sample

    one = case((INITS,), workers=CORES)
    each = case(tuple((init,) for init in INITS), threads=CORES)
    seconds = alternating({"one": one, "each": each}, rounds, warm_up=0)
    told = ", ".join(f"{100 * density:.1f}" for density in densities[0])
    how = f"{CORES} workers of one thread; {CORES} threads; wall time, {rounds} rounds; densities {told} %"
    what = f"{len(INITS)} tickets from one command / from {len(INITS)}: {task.name}, {recipe.length} a training"
    return [ratio_row(what, seconds["one"], seconds["each"], how=how)]


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--length", default="2ep", help="of a training")
    main("many_tickets", measure, options)
