"""Folders and files that this process may not read or write, also where tests run as root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER, OTHER = 4243, 4242
"""The user who runs the commands, and the user who owns files that they may not touch; both are unprivileged."""


@contextlib.contextmanager
def place_of_users() -> Iterator[Path]:
    """A new folder that any user may enter."""
    with tempfile.TemporaryDirectory(prefix="ticketry-test-") as folder:
        os.chmod(folder, 0o755)
        try:
            yield Path(folder)
        finally:
            for path in (Path(folder), *Path(folder).rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)


def hand_over(folder: Path, user: int = USER) -> None:
    """Give a folder and all that is in it to a user."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user, follow_symlinks=False)


def close(path: Path) -> None:
    """Take a file or folder from the user, who may not even read it."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER)
        path.chmod(0o700 if path.is_dir() else 0o600)
    else:
        path.chmod(0o000)


def make_read_only(folder: Path) -> None:
    """Let the user read all that is in a folder, and write nothing."""
    hand_over(folder, OTHER)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@contextlib.contextmanager
def as_user() -> Iterator[None]:
    """Run the block without root's rights."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(USER)
    os.seteuid(USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of what is in it, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path.name not in ("lock", "moving.json")
    }
