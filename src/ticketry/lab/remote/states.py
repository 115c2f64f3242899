"""States inside a segment as objects of a shared store: one each, or one for each file of a folder of parts.

The list of a folder's files is uploaded last and fetched first, so that whoever finds it finds the others.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ticketry.files import content_of
from ticketry.folders import delete_tree_if_possible
from ticketry.lab.remote.lease import Known
from ticketry.lab.remote.objects import Remote
from ticketry.lab.store import parts
from ticketry.lab.store.files import is_there, write_atomically
from ticketry.lab.store.paths import Paths

_log = logging.getLogger(__name__)


class _List(msgspec.Struct):
    """What a list of parts says."""

    files: dict[Annotated[str, Meta(pattern=r"^\.?\w[\w.-]*$", max_length=200)], str]


class State(NamedTuple):
    """A state that was uploaded."""

    step: int
    digest: str
    """SHA-256 of its file, or of the list of its parts."""
    in_parts: bool


def state_of(known: Known) -> State | None:
    """The newest state of a trajectory, as its object names it."""
    return State(*known.partial, known.in_parts) if known.partial else None


def with_state(known: Known, state: State | None) -> Known:
    """What is known of a trajectory, with this as its newest state."""
    if state is None:
        return msgspec.structs.replace(known, partial=None, in_parts=False)
    return msgspec.structs.replace(known, partial=(state.step, state.digest), in_parts=state.in_parts)


def trajectory_of(name: str) -> str:
    """Of an object below ``partial``."""
    return name.partition("/")[0].rsplit("-", 2)[0]


def is_of(state: State, name: str) -> bool:
    """Whether an object below ``partial`` is of this state of its trajectory."""
    return Path(name.partition("/")[0]).stem.endswith(f"-{state.step}-{state.digest}")


class States:
    """Those of one trajectory."""

    def __init__(self, remote: Remote, paths: Paths, trajectory: str) -> None:
        self._remote, self._paths, self._trajectory = remote, paths, trajectory

    def push(self, step: int, path: Path) -> State:
        """Upload the state in a file or a folder.

        Raises:
            FileNotFoundError: if a newer one takes its place before it is read.
            StoreError: if the store does not answer.
        """
        if not path.is_dir():
            state = State(step, path.stem.rpartition("-")[2], False)
            self._remote.create(self._name(state), content_of(path))
            return state
        held = parts.linked(path)
        try:
            listed = content_of(held / parts.LIST)
            state = State(step, hashlib.sha256(listed).hexdigest(), True)
            for name in _files_in(listed):
                self._remote.create(f"{self._name(state)}/{name}", content_of(held / name))
            self._remote.create(f"{self._name(state)}/{parts.LIST}", listed)
        finally:
            delete_tree_if_possible(held)
        return state

    def fetch(self, state: State) -> None:
        """Get a state, if it is not here; one that is damaged or gone is none."""
        if state.in_parts:
            self._fetch_parts(state)
            return
        path = self._paths.partial_file(self._trajectory, state.step, state.digest)
        if not is_there(path) and (found := self._remote.read(self._name(state))):
            write_atomically(path, found.data)

    def _fetch_parts(self, state: State) -> None:
        name = self._name(state)
        if is_there(self._paths.partial_folder(self._trajectory, state.step)):
            return
        listed = self._remote.read(f"{name}/{parts.LIST}")
        if listed is None or hashlib.sha256(listed.data).hexdigest() != state.digest:
            _log.warning("the state at %s/%s is gone or damaged: it is not gone on from", self._remote.address, name)
            return
        files = _files_in(listed.data)
        folder = parts.begun(self._paths, self._trajectory, state.step)
        try:
            for one in files:
                if (found := self._remote.read(f"{name}/{one}")) is None:
                    return  # dropped meanwhile: another has gone on from it
                write_atomically(folder / one, found.data)
            parts.finish(folder, self._paths, self._trajectory, state.step, files)
        finally:
            delete_tree_if_possible(folder)

    def names(self, state: State) -> list[str]:
        """The objects of a state, its list first: without it the others are of no use."""
        name = self._name(state)
        if not state.in_parts:
            return [name]
        listed = self._remote.read(f"{name}/{parts.LIST}")
        return [f"{name}/{one}" for one in (parts.LIST, *_files_in(listed.data))] if listed else []

    def _name(self, state: State) -> str:
        path = self._paths.partial_file(self._trajectory, state.step, state.digest)
        path = path.with_suffix(".parts") if state.in_parts else path
        return path.relative_to(self._paths.root).as_posix()


def _files_in(listed: bytes) -> dict[str, str]:
    """Name -> digest of the files in a list of parts; none, if it is damaged or forged."""
    try:
        return dict(msgspec.json.decode(listed, type=_List).files)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
