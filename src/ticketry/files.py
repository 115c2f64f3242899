"""List and delete folders, and check that untrusted paths stay inside a folder.

If a folder cannot be read, these functions raise `OSError`, while `pathlib` returns False or an empty list. So code
that deletes or moves files must use these functions. None of them recurses, because an untrusted folder may be nested
very deep. The file functions of `ticketry_engine` can be imported from this module too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ticketry.errors import OutsideError
from ticketry_engine.support.files import cache_folder as cache_folder
from ticketry_engine.support.files import describe_os_error as describe_os_error
from ticketry_engine.support.files import file_digest as file_digest
from ticketry_engine.support.files import flush_to_disk as flush_to_disk
from ticketry_engine.support.files import make_folder as make_folder
from ticketry_engine.support.files import open_regular_file as open_regular_file
from ticketry_engine.support.files import parse_json as parse_json
from ticketry_engine.support.files import read_bytes as read_bytes
from ticketry_engine.support.files import read_private_bytes as read_private_bytes
from ticketry_engine.support.files import replace_on_success as replace_on_success
from ticketry_engine.support.files import temporary_sibling_path as temporary_sibling_path
from ticketry_engine.support.files import why_not_private as why_not_private
from ticketry_engine.support.files import write_atomically as write_atomically

_LONGEST_NAME = 255
_INVALID_NAMES = ("", ".", "..")
_SEPARATORS = "/\\" if os.sep == "/" else "/\\:"


def join_inside(root: Path, *names: str) -> Path:
    """Return the path `root` / names[0] / names[1] …, for names that come from an untrusted file.

    Raises:
        OutsideError: if a name is not a plain file name (but a path, ``..``, empty, too long or not printable), or if a
            link on the path leads outside `root`.
    """
    for name in names:
        plain = isinstance(name, str) and name not in _INVALID_NAMES and name.isprintable()
        if not plain or any(letter in name for letter in _SEPARATORS) or len(os.fsencode(name)) > _LONGEST_NAME:
            raise OutsideError(
                f"{name!r:.80} is not a file name in {root}: the file that contains it is damaged or forged"
            )
    path = os.fspath(root)
    linked = os.name == "nt"
    for name in names:
        path = os.path.join(path, name)
        linked = linked or os.path.islink(path)
    # Resolving a path takes many times as long, and changes nothing below the root where there is no link.
    return require_inside(root, Path(path)) if linked else Path(path)


def require_inside(root: Path, path: Path) -> Path:
    """Return `path` if it is inside `root` after resolving links; else raise `OutsideError`."""
    real = os.path.realpath(root)
    if os.path.commonpath([real, os.path.realpath(path)]) != real:
        raise OutsideError(f"{path} is a link to outside of {root} and is not followed")
    return path


_MISSING = (FileNotFoundError, NotADirectoryError)


def exists(path: Path) -> bool:
    """Return whether a file or folder exists, following links; raise `OSError` if access is denied."""
    return _file_mode_or_none(path) is not None


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file, following links; raise `OSError` if access is denied."""
    mode = _file_mode_or_none(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, following links; raise `OSError` if access is denied."""
    mode = _file_mode_or_none(path)
    return mode is not None and stat.S_ISDIR(mode)


def _file_mode_or_none(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except _MISSING:
        return None


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name; an empty list if the folder does not exist.

    Raises:
        OSError: if the folder cannot be read, or is a link to a missing folder.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except _MISSING:
        if os.path.islink(folder) and not os.path.lexists(os.path.realpath(folder)):
            raise OSError(errno.ENOLINK, "it is a link to a place that is missing", str(folder)) from None
        return []


def list_matching(folder: Path, pattern: str) -> list[Path]:
    """Return the paths in a folder that match a pattern such as ``*/*.json``, sorted. Links to folders are followed.

    Raises:
        OSError: if one of the folders cannot be read.
    """
    *folders, last = pattern.split("/")
    places = [folder]
    for part in folders:
        places = [
            place / entry.name
            for place in places
            for entry in list_entries(place)
            if fnmatchcase(entry.name, part) and entry.is_dir()  # False if it was deleted meanwhile
        ]
    return [place / entry.name for place in places for entry in list_entries(place) if fnmatchcase(entry.name, last)]


def iterate_below(folder: Path) -> Iterator[Path]:
    """Yield all files and folders below a folder, each folder before its contents. Links are yielded but not followed.

    Raises:
        OSError: if a folder cannot be read.
    """
    for path, _ in _iterate_entries_below(folder):
        yield path


def iterate_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, but no links; raise the same errors as `iterate_below`."""
    for path, entry in _iterate_entries_below(folder):
        if entry.is_file(follow_symlinks=False):
            yield path


def iterate_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders below a folder, each before its sub-folders; raise the same errors as `iterate_below`."""
    for path, entry in _iterate_entries_below(folder):
        if entry.is_dir(follow_symlinks=False):
            yield path


def _iterate_entries_below(folder: Path) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    waiting = [(folder / entry.name, entry) for entry in reversed(list_entries(folder))]
    while waiting:
        path, entry = waiting.pop()
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            waiting += [(path / inner.name, inner) for inner in reversed(list_entries(path))]


# -- deleting ----------------------------------------------------------------------------------------------------------


def delete_tree(folder: Path) -> None:
    """Delete a folder and its contents, however deeply nested. Links in it are deleted, not followed.

    Raises:
        OSError: if the folder is missing, is a link, or cannot be deleted.
    """
    _delete(folder, lenient=False)


def delete_tree_if_possible(folder: Path) -> None:
    """Delete as much of a folder as the system allows; do nothing if it does not exist."""
    with contextlib.suppress(OSError):
        _delete(folder, lenient=True)


def _delete(folder: Path, *, lenient: bool) -> None:
    if os.rename not in os.supports_dir_fd or os.scandir not in os.supports_fd:  # Windows
        shutil.rmtree(folder, ignore_errors=lenient)
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _delete_folder_contents(handle, contextlib.suppress(OSError) if lenient else contextlib.nullcontext())
    finally:
        os.close(handle)
    os.rmdir(folder)


def _delete_folder_contents(root: int, attempt: contextlib.AbstractContextManager[None]) -> None:
    """Delete the contents of an open folder; folders that are not empty are first moved up, so that paths stay short.

    `root` is the folder's file descriptor; `attempt` is the context of each deletion, which may ignore errors.
    """
    waiting = _unlink_files(root, attempt)
    while waiting:
        with attempt:
            name = waiting.pop()
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
            try:
                for inner in _unlink_files(handle, attempt):
                    with attempt:
                        waiting += _delete_if_empty_or_move_up(inner, handle, root)
            finally:
                os.close(handle)
            os.rmdir(name, dir_fd=root)


def _delete_if_empty_or_move_up(name: str, parent: int, root: int) -> list[str]:
    """Delete the folder `name` in `parent` if it is empty; else move it to `root` and return its new name."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        moved = f".{secrets.token_hex(8)}.tmp"
        os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=root)
        return [moved]
    return []


def _unlink_files(handle: int, attempt: contextlib.AbstractContextManager[None]) -> list[str]:
    """Delete the files and links in an open folder, and return the names of the remaining folders.

    `handle` is the folder's file descriptor; `attempt` is the context of each deletion, which may ignore errors.
    """
    with os.scandir(handle) as found:
        listed = list(found)
    folders = []
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        else:
            with attempt, contextlib.suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=handle)
    return folders
