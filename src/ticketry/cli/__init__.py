"""The command line: one sub-command per verb, each a file here with `SUMMARY` and `main(arguments) -> exit code`.

torch is imported only once a verb needs it, so that help answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ticketry.errors import InterruptedTrainingError, TicketryError
from ticketry.version import __version__

# verb -> (module, what it does)
VERBS = {
    "search": ("search", "find tickets by a published method, with controls, and report what was found"),
    "verify": ("verify", "does a ticket win? trained anew from fresh seeds, against dense and controls"),
    "stability": ("stability", "to pruning and to data order, and error barriers, along rewind points"),
    "structure": ("structure", "a ticket of whole channels, groups of rows or 2:4, made of one without structure"),
    "compile": ("compile", "a ticket as a file that runs fast: sparse kernels made for its mask"),
    "bench": ("bench", "a ticket against dense engines, side by side: time saved, by batch and by layer"),
    "export": ("export", "a ticket as ONNX or a torch.export archive, smaller where whole channels are gone"),
    "report": ("report", "write the report of a run again, or of several in one page; export figures and data"),
    "list": ("listing", "tasks, methods, models, scores, runs or tickets"),
    "store": ("store", "check a store for damage, or free space in it"),
}

# Else torch's profiler, which measures memory, tells on standard error that it began; it asks before it is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")

_EXAMPLES = """\
examples:
  ticketry search iterative --task digits --rewind 3% --density 0.05
  ticketry search imp --task fashion-mnist --levels 14 --json
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry stability --task digits --rewinds 0,3%,20% --densities 0.3,0.1
  ticketry bench .ticketry/runs/RUN/tickets/replicate-0-level-09 --batch 1,64
  ticketry list tasks
  ticketry report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except InterruptedTrainingError:
        return _interrupted()
    except TicketryError as error:
        print(f"ticketry: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"ticketry {__version__}")
        return 0
    if words[0] not in VERBS:
        print(f"ticketry: {words[0]!r} is no verb: {', '.join(VERBS)} (see ticketry --help)", file=sys.stderr)
        return 2
    module = importlib.import_module(f"{__name__}.{VERBS[words[0]][0]}")
    code: int = module.main(words[1:])
    return code


def _help() -> str:
    lines = [f"  {verb:<9} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: ticketry VERB ...",
            "",
            "Find sparse, trainable sub-networks (lottery tickets) in PyTorch models, and show that they win.",
            "",
            "verbs (each has --help):",
            *lines,
            "",
            _EXAMPLES,
            "Everything trained is kept in a store (--store, by default .ticketry): a command that was interrupted",
            "goes on where it stopped, and nothing is trained twice. --json prints the result as one JSON object.",
        ]
    )


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more (`| head`); then nothing more is written to it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _interrupted() -> int:
    print("ticketry: interrupted; what was trained is stored, and the same command goes on from there", file=sys.stderr)
    return 130
