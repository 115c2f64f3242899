"""The command line, called in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import pytest

from ticketry.cli import main


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error."""
    try:
        code = main(list(words))
    except SystemExit as end:  # tyro's own way out for wrong usage and --help
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def printed(*words: str) -> str:
    """Standard output of a command that must succeed; for fixtures, which have no `capsys`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    assert code == 0, err.getvalue()
    return out.getvalue()
