"""The folder that a driver and its jobs share, which does not stay behind when the driver is killed.

A driver holds a lock in its folder, which the system takes from it however it ends. The next driver beside it deletes
folders whose locks nobody holds. A file system without locks tells nothing, and nothing is deleted there.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import filelock

from ticketry.folders import delete_tree_if_possible, is_file, list_matching

_LOCK = "driver"


class JobFolder:
    """A new folder of this driver's own, beside those of others; folders of drivers that are gone are deleted."""

    def __init__(self, parent: Path) -> None:
        """
        Raises:
            OSError: if it cannot be made.
        """
        delete_abandoned(parent)
        name = f"search-{uuid.uuid4().hex}"
        self.path, made = parent / name, parent / f".{name}"
        made.mkdir()
        self._lock = filelock.FileLock(made / _LOCK)
        with contextlib.suppress(filelock.Timeout, OSError, NotImplementedError):
            self._lock.acquire(timeout=0)
        os.rename(made, self.path)  # nobody sees it before its lock is held

    def remove(self) -> None:
        """Delete it, with all that is in it."""
        delete_tree_if_possible(self.path)
        with contextlib.suppress(OSError):
            self._lock.release()


def delete_abandoned(parent: Path) -> None:
    """Delete the folders of drivers that have ended without doing so. What their jobs still train is in the store when
    it is trained, and asked for by whoever goes on with the search."""
    for folder in list_matching(parent, "search-*"):
        with contextlib.suppress(filelock.Timeout, OSError, NotImplementedError):
            # One of a version that held no lock stays, and so does what another user made.
            if is_file(folder / _LOCK):
                with filelock.FileLock(folder / _LOCK).acquire(timeout=0):
                    delete_tree_if_possible(folder)
