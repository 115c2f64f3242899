"""Run the command line: the function of a command gets the words after the command's name and returns the exit code.

Modules are imported only when a command needs them, so that `ticketry --help` does not wait for torch.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from ticketry.choices import list_choices
from ticketry.errors import InterruptedTrainingError, TicketryError
from ticketry.files import describe_os_error
from ticketry.lab.process import handle_signals, print_error_line, signal_name
from ticketry.version import __version__

NEED_ARGUMENT = frozenset(
    ("verify", "stability", "structure", "compile", "export", "bench", "cost", "reproduce", "speedup")
)
"""Commands that require a positional argument."""
COMMANDS = {
    "demo": ("search:demo", "a whole search on 1,797 handwritten digits, with its verdict, in a minute or two"),
    "search": ("search", "find tickets by a published method, with controls, and report what was found"),
    "verify": ("verify:verify", "does a ticket win? trained again from fresh seeds, against dense and controls"),
    "stability": ("verify:stability", "to pruning and to data order, and error barriers, along rewind steps"),
    "structure": ("export:structure", "a ticket of whole channels, row groups or 2:4, made of one without structure"),
    "cost": ("timing:cost", "what a task's network takes, layer by layer, here or elsewhere: what --time goes by"),
    "compile": ("export:compile", "a ticket as a file that runs fast: sparse kernels made for its mask"),
    "bench": ("timing:bench", "a ticket against dense engines, side by side: time saved, by batch and by layer"),
    "speedup": ("timing:speedup", "a model twice as fast in three steps: compiled, whole channels, weights; one table"),
    "export": ("export:export", "a ticket as ONNX or a torch.export archive, smaller where whole channels are gone"),
    "reproduce": ("reproduce", "decide what papers claim: a campaign of runs and claims, by planned replicates"),
    "report": ("report", "write the report of a run again, or of several in one page; export figures and data"),
    "list": ("listing", "tasks, methods, models, scores, controls …, runs or tickets"),
    "doctor": ("doctor", "what this machine and environment have, and what each means for speed"),
    "rm": ("store:remove", "delete a run, and what only it stands on"),
    "store": ("store", "check a store for damage, free space in it, or move it or its results"),
}

_EXAMPLES = """\
examples:
  ticketry demo
  ticketry search iterative --task digits --rewind 3% --density 0.05
  ticketry search imp --task fashion-mnist --levels 14 --json
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry stability --task digits --rewinds 0,3%,20% --densities 0.3,0.1
  ticketry bench .ticketry/runs/RUN/tickets/replicate-0-level-09 --batch 1,64
  ticketry list tasks
  ticketry report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Exit codes: 0 for success, 1 for failure, 2 for wrong usage, 141 if the reader of the output has exited (`| head`),
    and 128 + n if signal n ended the command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 131 for SIGQUIT.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that lacks a letter
    with handle_signals(command=True) as request:
        try:
            code = _dispatch_command(words)
            sys.stdout.flush()  # while errors of a closed pipe can still be handled
            return code
        except BaseException as error:
            if request.number:
                return _report_signal(f"ended by {signal_name(request.number)}", request.number, words)
            return _report_exception(error, words)


def _report_exception(error: BaseException, words: Sequence[str]) -> int:
    """Print why `error` ended the command line `words`, and return the exit code; raise unexpected errors again."""
    match error:
        case InterruptedTrainingError() if error.number != signal.SIGINT:
            return _report_signal(f"ended, since a worker process got {signal_name(error.number)}", error.number, words)
        case InterruptedTrainingError() | KeyboardInterrupt():
            return _report_signal("interrupted", signal.SIGINT, words)
        case TicketryError():
            return _report_error(str(error), error.exit_code)
        case BrokenPipeError() if _is_output_closed():
            return 141  # as if it had been ended by SIGPIPE, like other commands
        case SystemExit() if _is_output_closed():  # rich ends with code 1 if its reader is gone
            return 141
        case SystemExit():  # tyro ends with 0 after --help, else 2
            return _report_error(error.code, 1) if isinstance(error.code, str) else error.code or 0
        case OSError() if not isinstance(error, BrokenPipeError):
            what = f"{error.filename}: " if error.filename else ""
            return _report_error(f"{what}{describe_os_error(error)}", 1)
        case MemoryError():
            return _report_error("there is not enough memory: choose a smaller batch, network or fewer workers", 1)
    raise error


def _report_signal(how: str, number: int, words: Sequence[str]) -> int:
    """Print that signal `number` ended a command, and return the exit code of the process."""
    if number == signal.SIGINT:
        how = "interrupted"
    command = shlex.join(["ticketry", *words])
    print_error_line(f"{how}; what was trained is stored, and the same command continues from there: {command}")
    return 128 + number


_LONG_WORD = re.compile(r"\S{500,}")
"""Matches a word that is too long for an error message, such as the path of a deeply nested folder."""


def _report_error(text: str, code: int) -> int:
    """Print an error message without control characters, and return the exit code `code`."""
    clean = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    clean = _LONG_WORD.sub(lambda found: f"{found[0][:300]}…{found[0][-100:]}", clean)
    print(f"ticketry: {clean}", file=sys.stderr)
    return code


def _dispatch_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_build_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"ticketry {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(
            f"ticketry: {words[0]!r} is not a command: {list_choices(words[0], COMMANDS)} (see ticketry --help)",
            file=sys.stderr,
        )
        return 2
    module, _, function = COMMANDS[words[0]][0].partition(":")
    command = getattr(importlib.import_module(f"{__name__}.{module}"), function or "main")
    if words[0] in NEED_ARGUMENT and not words[1:]:
        with contextlib.suppress(SystemExit):
            command(["--help"])
        return 2
    code: int = command(words[1:])
    if opening := sys.modules.get("ticketry.lab.store.store"):  # torch is not imported for it
        opening.publish_opened_stores()
    return code


def _build_help() -> str:
    lines = [f"  {command:<9} {summary}" for command, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ticketry COMMAND ...",
            "",
            "Find sparse, trainable sub-networks (lottery tickets) in PyTorch models, and show that they win.",
            "",
            "commands (each has --help):",
            *lines,
            "",
            _EXAMPLES,
            "Everything trained is kept in a store (--store, by default .ticketry): a command that was interrupted",
            "continues where it stopped, and nothing is trained twice. --json prints the result as one JSON object.",
        ]
    )


def _is_output_closed() -> bool:
    """Return whether the reader of standard output has exited (`| head`); if so, discard further output."""
    try:
        sys.stdout.flush()
        gone = _is_pipe_closed(sys.stdout)
    except BrokenPipeError:
        gone = True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _is_pipe_closed(stream: TextIO) -> bool:
    """Return whether `stream` is a pipe whose reader has closed the pipe; no output needs to be written to find out."""
    try:
        watched = select.poll()
        watched.register(stream.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # no poll, no pipe
        return False
    return any(event & select.POLLERR for _, event in watched.poll(0))
