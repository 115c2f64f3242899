"""Time to import ticketry, compared with torch alone, and time until `ticketry --help` answers.

Each import is timed inside a new interpreter, without its start; CPU time, because other processes do not add to it.
The package imports what it needs when a name is first used: the second figure touches every public name. Byte code is
written, as for an installed package, and files have been read before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from common import Row, alternating, finished, main, parser, ratio_row, seconds_row, ticketry_command, timed

TARGET_RATIO, TARGET_HELP = 1.2, 0.5
ROUNDS, QUICK_ROUNDS = 15, 2
IMPORTS = {
    "torch": "import torch",
    "ticketry": "import ticketry",
    "all names": "import ticketry\nfor name in ticketry.__all__: getattr(ticketry, name)",
}


def measure(arguments: argparse.Namespace) -> list[Row]:
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    cases = {name: importing(statement) for name, statement in IMPORTS.items()}
    cases["help"] = lambda: timed(lambda: finished([*ticketry_command(), "--help"]), time.perf_counter)
    seconds = alternating(cases, rounds)
    how = f"CPU time, {rounds} rounds"
    torch = seconds["torch"]
    return [
        ratio_row("import ticketry / import torch", seconds["ticketry"], torch, target=TARGET_RATIO, how=how),
        ratio_row(
            "import ticketry and use all its names / import torch",
            seconds["all names"],
            torch,
            target=TARGET_RATIO,
            how=how,
        ),
        seconds_row("import torch", torch, how=how),
        seconds_row("ticketry --help", seconds["help"], target=TARGET_HELP, how=f"wall time, {rounds} rounds"),
    ]


def importing(statement: str) -> Callable[[], float]:
    """CPU seconds of a statement in a new interpreter."""
    code = f"import time\nbegan = time.process_time()\n{statement}\nprint(time.process_time() - began)"
    return lambda: float(finished([sys.executable, "-c", code]))


if __name__ == "__main__":
    main("imports", measure, parser(__doc__ or ""))
