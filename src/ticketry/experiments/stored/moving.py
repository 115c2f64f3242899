"""A store to another folder: renamed, or copied to another file system and deleted when all of it is there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.experiments.stored.copying import renamed
from ticketry.files import file_digest, flush, replacing
from ticketry.folders import delete_tree, iterate_below, iterate_folders
from ticketry.lab.remote.address import address_of, shown
from ticketry.lab.store.files import explained, is_there, read_json, read_sealed, write_json, write_sealed
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.running import under_way
from ticketry.lab.store.store import Store


def move_store(root: Path, target: Path) -> Path:
    """Move a store to a folder that is not there yet, and let its records name the new place; killed, the same call
    goes on.

    Raises:
        StoreError: if there is no store, it is a link, something else is there, a run of the store is being carried
            out, or it cannot be moved.
    """
    if url := address_of(root):
        raise StoreError(f"{url} is shared: copy it with `ticketry store copy {url} TO`, and delete it where it is")
    if root.is_symlink():
        raise StoreError(f"{root} is a link to {root.resolve()}: name that with --store, and make the link anew")
    source, begun = root.resolve(), Paths(target).moving
    goes_on = (read_json(begun) or {}).get("from") == str(source)
    if is_there(Paths(root).format) or not goes_on:
        _check(root)
    if os.path.lexists(target) and not goes_on:
        raise StoreError(f"{target} is there already: name a folder that is not")
    if target.resolve().is_relative_to(source):
        raise StoreError(f"{target} lies in the store itself: name a folder outside of it")
    if not goes_on and not _renamed_at_once(root, target):
        write_json(begun, {"from": str(source)})
    copied = _copied(root, target) if is_there(root) else {}
    _rename_records(Paths(target), tuple(dict.fromkeys(map(str, (root, root.absolute(), source)))), str(target))
    if is_there(root):
        _settle(root, target, copied)
    with explained(begun, "delete"):
        begun.unlink()
    return target


def _check(root: Path) -> None:
    """Raises `StoreError` unless there is a store in which nothing is carried out, with records that can be read."""
    if not is_there(Paths(root).format):
        raise StoreError(f"there is no store in {shown(root)}: name another with --store")
    store = Store(root)
    if what := under_way(store):
        raise StoreError(f"{what}: move the store when it has ended")
    for path in _records(store.paths):
        read_sealed(path)


def _records(paths: Paths) -> Iterator[Path]:
    yield from paths.run_records()
    yield from paths.evidence_records()
    yield from paths.campaign_records()


def _renamed_at_once(root: Path, target: Path) -> bool:
    """Whether the folder could be renamed: not to another file system."""
    mark = Paths(root).moving
    write_json(mark, {"from": str(root.resolve())})  # it goes with the folder, whose records are still the old ones
    with explained(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            root.rename(target)
        except OSError as error:
            mark.unlink()
            if error.errno != errno.EXDEV:
                raise
            return False
    return True


_Files = dict[Path, tuple[int, int]]
"""Each file of a store that is moved, with its size and time."""


def _copied(root: Path, target: Path) -> _Files:
    """Copy all that is not there yet but the store's own file, by which a store is known."""
    files = _files(root)
    settled = is_there(Paths(target).format)  # it has been all there, and may have been used since
    for path in files:
        place = target / path.relative_to(root)
        if not (is_there(place) and (settled or _is_same(path, place))):
            _copy_file(path, place)
    return files


def _files(root: Path) -> _Files:
    own, found = Paths(root), _Files()
    with explained(root, "read"):
        for path in iterate_below(root):
            about = os.lstat(path)
            if stat.S_ISDIR(about.st_mode):
                continue
            if not stat.S_ISREG(about.st_mode):
                raise StoreError(
                    f"{path} is no file, but a link or a pipe: delete it, it cannot be moved to another disk"
                )
            if path.name != "lock" and not path.name.endswith(".tmp") and path not in (own.format, own.moving):
                found[path] = about.st_size, about.st_mtime_ns
    return found


def _is_same(path: Path, other: Path) -> bool:
    with explained(path, "compare"):
        return path.stat().st_size == other.stat().st_size and file_digest(path) == file_digest(other)


def _copy_file(path: Path, place: Path) -> None:
    with explained(place, "write"), replacing(place, durable=True) as temporary:
        shutil.copyfile(path, temporary)
        about = path.stat()
        os.utime(temporary, ns=(about.st_atime_ns, about.st_mtime_ns))  # `list runs` and `store gc` go by the age
        if not _is_same(path, temporary):
            raise StoreError(f"{path} changed while it was moved: run the same command again, it goes on")


def _rename_records(paths: Paths, origins: tuple[str, ...], new: str) -> None:
    for path in _records(paths):
        values = read_sealed(path) or {}
        moved = renamed(values, origins, new)
        if moved != values:
            write_sealed(path, moved)


def _settle(root: Path, target: Path, copied: _Files) -> None:
    """Make a store of what was copied, once it is on the disk, and delete the one that it was copied from."""
    own = Paths(root).format
    if is_there(own) and (what := under_way(Store(root))):
        raise StoreError(f"{what}: move the store when it has ended, with the same command")
    if _files(root) != copied:
        raise StoreError(f"{root} changed while it was moved: run the same command again, it goes on")
    with explained(target, "write"):
        for folder in (target, *iterate_folders(target)):
            flush(folder)
    if is_there(own):
        _copy_file(own, Paths(target).format)
    for path in sorted(root.iterdir(), key=lambda path: path == own):  # without which the same command would not go on
        with explained(path, "delete"):
            delete_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with explained(root, "delete"):
        root.rmdir()
