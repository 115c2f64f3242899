"""Functions that run in a fork of this process: what it has imported is not imported again, which takes seconds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Fork:
    """A fork of this process that ends with what a function returns, with some of the methods of `subprocess.Popen`."""

    def __init__(self, folder: Path, function: Callable[..., Any], *arguments: Any) -> None:
        """Call the function in a fork, which has a process group of its own; write what it prints to `folder`."""
        self._out, self._err = folder / "fork.out", folder / "fork.err"
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(function, *arguments))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        os.setsid()
        out, err = self._out.open("w", buffering=1), self._err.open("w", buffering=1)
        with out, err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.exit(function(*arguments))

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int:
        assert self._process.exitcode is not None, "it has not ended"
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; return standard output and standard error."""
        self._process.join(timeout)
        return self._out.read_text(), self._err.read_text()
