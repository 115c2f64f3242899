"""Files and folders: atomic writes, paths that stay inside, deep trees, and what cannot be read."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.calling import call
from other_users import as_user, close, hand_over, place_of_users
from samples import sample
from ticketry.core.ticket.folder import write_folder
from ticketry.errors import OutsideError
from ticketry.files import (
    delete_tree,
    delete_tree_if_possible,
    exists,
    file_digest,
    flush_to_disk,
    is_file,
    is_folder,
    iterate_below,
    iterate_files,
    iterate_folders,
    join_inside,
    list_entries,
    list_matching,
    read_bytes,
    replace_on_success,
    write_atomically,
)
from ticketry.lab.store import checkpoints
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import Store
from ticketry.tasks.data.image_files import scan

# -- writing -----------------------------------------------------------------------------------------------------------


def test_replacing_keeps_the_old_file_if_the_block_fails(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    target = tmp_path / "deep" / "file"
    with replace_on_success(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_on_success(target) as temporary:
        fail(temporary)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["replace", "fsync", "chmod"])
def test_a_failed_system_call_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "file"
    write_atomically(target, b"old")
    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new", durable=True)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_flushed_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, (tmp_path / "file").exists())))
    write_atomically(tmp_path / "file", b"12345", durable=True)
    assert seen == [(5, False)]
    write_atomically(tmp_path / "other", b"12345")
    flush_to_disk(tmp_path)
    assert len(seen) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_rights_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "shared" / "file", b"")
        write_atomically(tmp_path / "own" / "file", b"", private=True)
        with replace_on_success(tmp_path / "shared" / "exchanged") as place:
            (tmp_path / "another").touch(0o600)
            os.replace(tmp_path / "another", place)
    finally:
        os.umask(before)
    for name in ("file", "exchanged"):
        assert stat.S_IMODE((tmp_path / "shared" / name).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "own" / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "file", b"", parents=False)


@pytest.mark.parametrize("size", [0, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_digest(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# -- paths inside a folder ---------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=12) | st.sampled_from(["..", ".", "", "/", "a/../..", "~", "\\", "a\0", "C:", "\n"]),
                min_size=1, max_size=3))  # fmt: skip
def test_no_name_leads_outside(tmp_path: Path, names: list[str]) -> None:
    """Against `os.path.realpath`."""
    try:
        found = join_inside(tmp_path, *names)
    except OutsideError:
        return
    assert os.path.dirname(os.path.realpath(found)).startswith(os.path.realpath(tmp_path))
    assert found.relative_to(tmp_path).parts == tuple(names)


def test_links_to_outside_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "back").symlink_to("..")
    (root / "own").symlink_to(root)
    for names in (("out",), ("back",), ("out", "file")):
        with pytest.raises(OutsideError, match="is a link to outside"):
            join_inside(root, *names)
    assert join_inside(root, "own", "file") == root / "own" / "file"
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert join_inside(linked, "file") == linked / "file", "the root itself may be a link: the user named it"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    for name in ("pipe", "absent", "."):
        with pytest.raises(OSError):
            read_bytes(tmp_path / name)
    with pytest.raises(OSError, match="no file, but a pipe or a device"):
        read_bytes(Path("/dev/zero"))
    with pytest.raises(OSError, match="larger than"):
        read_bytes(tmp_path / "file", most=4)
    assert read_bytes(tmp_path / "file", most=5) == b"12345"


# -- folders -----------------------------------------------------------------------------------------------------------

RECURSION = 300
"""Python's recursion limit in the tests of deep folders.

Walking a tree takes time that grows with the square of its depth: a lower limit needs no 1,000 folders."""

DEEP = 350
"""Nested folders: more than a recursive walk could follow."""


@pytest.fixture
def low_recursion_limit() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_users() as folder:
        yield folder


def make_deep(folder: Path, depth: int, name: str = "a") -> None:
    """Create nested folders of one `name` with a file in the innermost one."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=handle)
        inner = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)


def _random_tree(folder: Path, draw: random.Random, depth: int = 4) -> None:
    folder.mkdir()
    for name in draw.sample(["a", "b.json", ".c", "d.tmp", "e.json", "lock"], draw.randint(0, 4)):
        kind = draw.random()
        if kind < 0.5 and depth:
            _random_tree(folder / name, draw, depth - 1)
        elif kind < 0.9:
            (folder / name).write_text(name)
        else:
            (folder / name).symlink_to(draw.choice([folder, Path("/nowhere"), folder.parent]))


@pytest.mark.parametrize("seed", range(8))
def test_walks_are_those_of_the_system(tmp_path: Path, seed: int) -> None:
    """Against `os.walk` and `Path.glob`."""
    root = tmp_path / "root"
    _random_tree(root, random.Random(seed))
    files, folders = set[Path](), set[Path]()
    for at, inner, names in os.walk(root):
        folders |= {Path(at, name) for name in inner if not Path(at, name).is_symlink()}
        files |= {Path(at, name) for name in (*names, *inner) if Path(at, name) not in folders}
    found = list(iterate_below(root))
    assert set(found) == files | folders
    assert found == sorted(found)
    assert set(iterate_files(root)) == {path for path in files if not path.is_symlink()}
    assert set(iterate_folders(root)) == folders
    for pattern in ("*", "*/*.json", "*/*/*", "a/*", "*/lock", ".*"):
        assert list_matching(root, pattern) == sorted(root.glob(pattern)), pattern


def test_kinds_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("gone")
    for name, found in {
        "file": (True, True, False),
        "link": (True, True, False),
        ".": (True, False, True),
        "dangling": (False, False, False),
        "gone": (False, False, False),
        "file/inside": (False, False, False),
    }.items():
        assert tuple(ask(tmp_path / name) for ask in (exists, is_file, is_folder)) == found, name
    for name in ("gone", "file"):
        assert list_entries(tmp_path / name) == list_matching(tmp_path / name, "*/*") == []
    with pytest.raises(OSError, match="a link to a place that is missing"):
        list_entries(tmp_path / "dangling")

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(OSError) as caught:
        exists(tmp_path)
    assert caught.value.errno == errno.EIO


READERS: list[Callable[[Path], Any]] = [
    lambda folder: exists(folder / "file"),
    lambda folder: is_file(folder / "file"),
    lambda folder: is_folder(folder / "file"),
    list_entries,
    lambda folder: list_matching(folder.parent, "*/*"),
    lambda folder: list(iterate_below(folder.parent)),
    lambda folder: list(iterate_files(folder.parent)),
    delete_tree,
]


def test_what_may_not_be_read_is_an_error(place: Path) -> None:
    (place / "closed").mkdir()
    (place / "closed" / "file").write_text("")
    hand_over(place)
    close(place / "closed")
    for read in READERS:
        with as_user(), pytest.raises(PermissionError):
            read(place / "closed")
    assert (place / "closed" / "file").exists()


def test_deleting_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    for seed in range(5):
        root = tmp_path / "root"
        _random_tree(root, random.Random(seed))
        (root / "out").symlink_to(tmp_path / "kept")
        delete_tree(root)
        assert list(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept" / "file"]
    (tmp_path / "link").symlink_to("kept")
    with pytest.raises(OSError):
        delete_tree(tmp_path / "link")
    delete_tree_if_possible(tmp_path / "link")
    assert (tmp_path / "kept" / "file").exists()
    with pytest.raises(FileNotFoundError):
        delete_tree(tmp_path / "gone")
    delete_tree_if_possible(tmp_path / "gone")


def test_as_much_as_possible_is_deleted(place: Path) -> None:
    root = place / "root"
    for name in ("a", "closed", "z"):
        (root / name / "inner").mkdir(parents=True)
        (root / name / "inner" / "file").write_text("")
    hand_over(place)
    close(root / "closed")
    with as_user():
        delete_tree_if_possible(root)
    assert [path.name for path in root.iterdir()] == ["closed"]


# -- deep folders ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("low_recursion_limit")
def test_deep_folders_are_walked_and_deleted(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", DEEP)
    assert sum(1 for _ in iterate_below(tmp_path / "deep")) == DEEP + 1
    delete_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    make_deep(tmp_path / "deep", 30, LONG_NAME)
    delete_tree_if_possible(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()


LONG_NAME = "a" * 200
"""Thirty folders of this name are too long for one path on every system."""

COMMANDS = (
    "store check --store {0}",
    "store gc --grace-seconds 0 --store {0}",
    "list runs --store {0}",
    "store copy {0} {1}/copied",
    "store check --repair --store {0}",
    "store du --store {0}",
    "list tickets --store {0}",
    "store mv {1}/moved --store {0}",
)


@pytest.mark.usefixtures("low_recursion_limit")
@pytest.mark.parametrize("part", sample(["runs/a-run", "blobs/ab", ".a.tmp", "results", "memo", "live/x"], 1))
def test_commands_on_a_store_with_deep_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    store = Store(tmp_path / "store").paths.root
    make_deep(store / part, DEEP)
    for command in COMMANDS:
        code, _, err = call(capsys, *command.format(store, tmp_path).split())
        assert code in (0, 1), err[-300:]
        assert "Traceback" not in err[:300]
        assert len(err) < 2000, "not the whole path"
    for name in ("store", "moved", "copied"):
        delete_tree_if_possible(tmp_path / name)


def test_a_store_that_is_too_deep_for_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store").paths.root
    make_deep(store / "partial", 30, LONG_NAME)
    for command in COMMANDS[:2]:
        code, _, err = call(capsys, *command.format(store, tmp_path).split())
        assert code == 1
        assert "nested too deeply" in err
        assert len(err) < 2000
    delete_tree(tmp_path / "store")


@pytest.mark.usefixtures("low_recursion_limit")
def test_a_deep_folder_in_place_of_a_ticket_a_state_or_images(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    make_deep(paths.partial_folder("ab" * 32, 3), DEEP)
    assert not checkpoints.has_all_shards(paths.partial_folder("ab" * 32, 3))
    checkpoints.delete_shard_folders(paths, "ab" * 32, 3)
    assert not paths.partial_folder("ab" * 32, 3).exists()
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            make_deep(tmp_path / "images" / part / name, DEEP if (part, name) == ("train", "cat") else 1)
            for number in (1, 2):
                (tmp_path / "images" / part / name / f"{number}.png").write_bytes(b"")
    assert len(scan(tmp_path / "images").train.labels) == 4
    write_folder(tmp_path / "ticket", [("mask.safetensors", b"")], lambda facts: b"{}")
    delete_tree(tmp_path / "images")
