"""How much of a whole search is not training: IMP on Fashion-MNIST with LeNet-300-100 and all controls.

share = 1 - training seconds / (processes x wall seconds from the call of
`ticketry.experiments.search.execute` to its return).

Everything in between counts: data, evaluation, the store, masks, tickets, the record, and with workers the start of
their processes (each imports torch, and torch its compiler when it makes the first optimiser) and the time they wait
for work. The data set is prepared in the cache folder before, as any earlier run would have done. Each search runs in a
separate process with an empty store, so that nothing is loaded before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from common import Row, finished, in_fresh_process, main, one_thread, parser

TARGET = 5.0


def measure(arguments: argparse.Namespace) -> list[Row]:
    size = {
        "levels": arguments.levels or (1 if arguments.quick else 5),
        "length": arguments.length or ("1ep" if arguments.quick else "10ep"),
        "replicates": arguments.replicates,
        "data": arguments.data,
    }
    prepare = "import sys, pathlib, ticketry; ticketry.task('fashion-mnist').load(*map(pathlib.Path, sys.argv[1:]))"
    finished([sys.executable, "-c", prepare, *([str(arguments.data)] if arguments.data else [])])
    rows = []
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(in_fresh_process(searched, folder, workers, size), size)
    return rows


def searched(folder: str, workers: int, size: dict[str, Any]) -> dict[str, Any]:
    """One search in this process; what it took, in seconds."""
    import ticketry as tk
    from ticketry.experiments.request import SearchRequest
    from ticketry.experiments.search import execute
    from ticketry.search import method

    one_thread()
    task = tk.task("fashion-mnist")
    iterative = method("iterative")
    run = SearchRequest(
        method=iterative,
        task=task,
        settings=iterative.Settings(levels=size["levels"]),
        recipe=task.recipe.changed(length=size["length"]),
        replicates=size["replicates"],
        controls=("random_reinit", "shuffled", "random_prune"),
    )
    starts = Starts()
    parts = Parts()
    with tk.Lab(folder, data=size["data"], workers=workers, on_event=starts.on_event) as lab:
        if workers == 0:
            parts.watch()
        began = time.perf_counter()
        execute(lab, run)
        wall = time.perf_counter() - began
    ledger = lab.ledger
    return {
        "workers": workers,
        "wall": wall,
        "train": ledger.train_seconds,
        "networks": ledger.segments_trained,
        "steps": ledger.steps_trained,
        "in_workers": ledger.other_seconds,
        "started": starts.seconds(began, workers),
        "parts": parts.table(wall),
    }


def rows_of(found: dict[str, Any], size: dict[str, Any]) -> list[Row]:
    workers, wall, train = found["workers"], found["wall"], found["train"]
    processes = max(workers, 1)
    capacity = processes * wall
    how = (
        f"1 thread a process, fp32, wall time, 1 search: {found['networks']} networks of {size['length']}, {wall:.0f} s"
    )
    place = f"{workers} workers" if workers else "in process"
    rows = [
        Row(
            f"share of a search outside training steps, {place}",
            100 * (1 - train / capacity),
            "%",
            target=TARGET,
            how=how,
            details=found,
        )
    ]
    if workers:
        start = sum(found["started"])
        idle = capacity - train - found["in_workers"] - start
        parts = {
            "workers before their first work": start,
            "in workers: data, evaluation, store": found["in_workers"],
            "workers without work": idle,
        }
        rows.append(
            Row(
                "… not counting workers before their first work",
                100 * (1 - train / (capacity - start)),
                "%",
                how=f"start of worker processes, data: {', '.join(f'{one:.1f} s' for one in found['started'])}",
            )
        )
    else:
        parts = {name: seconds for name, seconds in found["parts"].items() if name != "training steps"}
    return rows + [
        Row(f"… {name}", 100 * seconds / capacity, "%", how=f"{seconds:.2f} s") for name, seconds in parts.items()
    ]


class Starts:
    """When each worker took its first work: the first segments that are heard of, one a worker."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def on_event(self, event: Any) -> None:
        if event.kind == "waiting":  # a worker says so before it takes the segment's lock
            self._at.setdefault(event.key, time.perf_counter())

    def seconds(self, began: float, workers: int) -> list[float]:
        return [at - began for at in sorted(self._at.values())[:workers]]


class Parts:
    """Times the parts of a search in this process; each second counts for the innermost part."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    def watch(self) -> None:
        """Wrap the functions that make up a search."""
        from torch.optim import Optimizer

        from ticketry.core.ticket.ticket import Ticket
        from ticketry.evidence import controls
        from ticketry.lab.lab import Lab
        from ticketry.lab.store.store import Store
        from ticketry.lab.training import loop
        from ticketry.lab.training.loop import Loop
        from ticketry.lab.training.segment import Segment
        from ticketry.tasks.images import ImageClassification

        self._wrap(Loop, "train_until", "training steps")
        self._wrap(Loop, "__init__", "setting up and reading out a network")
        self._wrap(Loop, "state", "setting up and reading out a network")
        # The first optimiser of a process makes torch import its compiler, 800 modules.
        self._wrap(Optimizer, "add_param_group", "torch's late imports")
        self._wrap(loop, "evaluate", "evaluation")
        self._wrap(ImageClassification, "load", "data")
        self._wrap(Segment, "describe", "keys of segments")
        self._wrap(Lab, "prune", "masks")
        self._wrap(controls, "draw_control_mask", "masks")
        self._wrap(Ticket, "save", "tickets")
        for name in (
            "put_bytes",
            "put_tensors",
            "put_mask",
            "put_result",
            "put_checkpoint",
            "put_memo",
            "drop_checkpoints",
        ):
            self._wrap(Store, name, "store: writing")
        for name in ("get_bytes", "get_tensors", "get_mask", "result", "newest_checkpoint", "memo", "stored_steps"):
            self._wrap(Store, name, "store: reading")

    def table(self, wall: float) -> dict[str, float]:
        """Seconds of each part, longest first."""
        parts = dict(sorted(self._seconds.items(), key=lambda part: -part[1]))
        return {**parts, "anything else": wall - sum(parts.values())}

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def count_call(*args: Any, **kwargs: Any) -> Any:
            self._turn(part)
            try:
                return original(*args, **kwargs)
            finally:
                self._turn(None)

        setattr(owner, name, count_call)

    def _turn(self, enter: str | None) -> None:
        now = time.perf_counter()
        if self._inside:
            self._seconds[self._inside[-1]] += now - self._since
        self._since = now
        if enter is None:
            self._inside.pop()
        else:
            self._inside.append(enter)


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--levels", type=int, help="5, or 1 with --quick")
    options.add_argument("--length", help="of each training: 10ep, or 1ep with --quick")
    options.add_argument("--replicates", type=int, default=2)
    options.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="one search each; 0 is in process")
    main("search_overhead", measure, options)
