"""What a store's folder stands for beyond itself. A plain folder: nothing. A mirror: see `lab.remote.mirror`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path


class Link:
    """The seam of a store: it tells which of its files it is about to read, and which it has written."""

    shared = False
    """Whether other machines see the store too."""

    def address(self, root: Path) -> str:
        """By which another process, or machine, opens the store."""
        return str(root.resolve())

    def begin(self) -> None:
        """Called before the store's own file is looked at: `StoreError` if there is something else."""

    # -- on the way of a segment -------------------------------------------------------------------------------------

    def wanted(self, path: Path, *, renew: bool = False) -> None:
        """A file is about to be read: if it is not there (or to `renew` it in any case), get it."""

    def intended(self, path: Path, *, replace: bool = False) -> None:
        """A file is about to be written; then it is `written`, or this process was killed, and the next one goes on."""

    def written(self, path: Path, *, replace: bool = False) -> None:
        """A file was written, which others may have already: theirs stays, unless this one is to `replace` it."""

    def kept(self, path: Path) -> None:
        """A file that was there already is relied on from here on."""

    def discarded(self, path: Path) -> None:
        """A file is damaged, and of no use."""

    def holding(self, trajectory: str) -> AbstractContextManager[None]:
        """Let nobody else, on any machine, train a trajectory in a block."""
        del trajectory
        return contextlib.nullcontext()

    def trajectory(self, trajectory: str) -> None:
        """The results and states along a trajectory are about to be looked for."""

    def known_steps(self, trajectory: str) -> list[int]:
        """The steps whose results or states others are known to have stored."""
        del trajectory
        return []

    def partial_written(self, trajectory: str, step: int, path: Path) -> None:
        """A newer state inside a segment was written."""

    def partials_dropped(self, trajectory: str, last: int) -> None:
        """The states up to this step are of no use any more."""

    # -- as a whole --------------------------------------------------------------------------------------------------

    def fetch(self, *, records: bool = True, results: bool = False, everything: bool = False) -> None:
        """Get records of runs and evidence; results and small answers; or all there is, again, to be checked."""

    def fetch_folder(self, folder: Path) -> None:
        """Get what is in the folder of a run, or in one below."""

    def publish(self) -> None:
        """Let others see the runs, evidence and campaigns that were written."""

    def files(self) -> Iterator[tuple[Path, int]]:
        """Path and size of all files that are not in the folder yet, as last listed."""
        return iter(())

    def removed(self, paths: Collection[Path]) -> None:
        """Files that were deleted, or are not in the folder and are to be."""

    def set_aside(self, path: Path, place: Path) -> None:
        """A damaged file was moved."""

    def collect(self, needed: Collection[str], grace_seconds: float, *, dry_run: bool) -> tuple[int, int] | None:
        """Delete elsewhere what no result refers to; files and bytes, or None where there is no elsewhere."""
        del needed, grace_seconds, dry_run
        return None

    def busy(self) -> str:
        """What is being trained by others now, in words; empty if nothing."""
        return ""
