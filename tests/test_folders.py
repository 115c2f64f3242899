"""Folders are walked, matched and deleted as deep as they are, and what cannot be read is an error."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.calling import call
from other_users import as_user, close, hand_over, place_of_users
from samples import sample
from ticketry.core.ticket.folder import write_folder
from ticketry.folders import (
    delete_tree,
    delete_tree_if_possible,
    exists,
    is_file,
    is_folder,
    iterate_below,
    iterate_files,
    iterate_folders,
    list_entries,
    list_matching,
)
from ticketry.lab.store import parts
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import Store
from ticketry.tasks.data.image_files import scan

DEEPEST = 2100
"""Folders in one another: twice as deep as Python calls, and too deep for one path."""


@pytest.fixture
def place() -> Iterator[Path]:
    with place_of_users() as folder:
        yield folder


def make_deep(folder: Path, depth: int) -> None:
    """Make folders in one another, with a file in the last."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=handle)
        inner = os.open("a", os.O_RDONLY, dir_fd=handle)
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


@pytest.mark.parametrize("seed", range(20))
def test_what_is_below_a_folder(tmp_path: Path, seed: int) -> None:
    """Against the system's own walk."""
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


def test_what_is_at_a_path(tmp_path: Path) -> None:
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
    assert (
        list_entries(tmp_path / "gone")
        == list_entries(tmp_path / "file")
        == list_matching(tmp_path / "gone", "*/*")
        == []
    )
    with pytest.raises(OSError, match="a link to a place that is missing"):
        list_entries(tmp_path / "dangling")


ASKING: dict[str, Callable[[Path], Any]] = {
    "exists": lambda folder: exists(folder / "file"),
    "is_file": lambda folder: is_file(folder / "file"),
    "is_folder": lambda folder: is_folder(folder / "file"),
    "entries": list_entries,
    "matching": lambda folder: list_matching(folder.parent, "*/*"),
    "iterate_below": lambda folder: list(iterate_below(folder.parent)),
    "iterate_files": lambda folder: list(iterate_files(folder.parent)),
    "delete_tree": delete_tree,
}


@pytest.mark.parametrize("name", ASKING)
def test_what_may_not_be_read_is_an_error(place: Path, name: str) -> None:
    (place / "closed").mkdir()
    (place / "closed" / "file").write_text("")
    hand_over(place)
    close(place / "closed")
    with as_user(), pytest.raises(PermissionError):
        ASKING[name](place / "closed")
    assert (place / "closed" / "file").exists()


def test_folders_are_deleted_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    for seed in range(10):
        root = tmp_path / "root"
        _random_tree(root, random.Random(seed))
        (root / "out").symlink_to(tmp_path / "kept")
        delete_tree(root)
        assert list(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept" / "file"]
    (tmp_path / "link").symlink_to("kept")
    for delete in (delete_tree, delete_tree_if_possible):
        if delete is delete_tree:
            with pytest.raises(OSError):
                delete(tmp_path / "link")
        delete_tree_if_possible(tmp_path / "link")
    assert (tmp_path / "kept" / "file").exists()
    with pytest.raises(FileNotFoundError):
        delete_tree(tmp_path / "gone")
    delete_tree_if_possible(tmp_path / "gone")


def test_as_much_is_deleted_as_can_be(place: Path) -> None:
    root = place / "root"
    for name in ("a", "closed", "z"):
        (root / name / "inner").mkdir(parents=True)
        (root / name / "inner" / "file").write_text("")
    hand_over(place)
    close(root / "closed")
    with as_user():
        delete_tree_if_possible(root)
    assert [path.name for path in root.iterdir()] == ["closed"]


def test_however_deep(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", DEEPEST)
    delete_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    make_deep(tmp_path / "deep", 1200)
    assert sum(1 for _ in iterate_below(tmp_path / "deep")) == 1201
    delete_tree_if_possible(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()


COMMANDS = (
    "store check --store {0}",
    "store check --repair --store {0}",
    "store gc --grace-seconds 0 --store {0}",
    "store du --store {0}",
    "list runs --store {0}",
    "list tickets --store {0}",
    "store copy {0} {1}/copied",
    "store mv {1}/moved --store {0}",
)


@pytest.mark.parametrize("part", sample(["runs/a-run", "blobs/ab", ".a.tmp", "results", "memo", "live/x"], 1))
def test_commands_on_a_store_with_deep_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    store = Store(tmp_path / "store").paths.root
    make_deep(store / part, 1100)
    for command in COMMANDS:
        code, _, err = call(capsys, *command.format(store, tmp_path).split())
        assert code in (0, 1), err[-300:]
        assert "Traceback" not in err[:300]
        assert len(err) < 2000, "not the whole path"
    for name in ("store", "moved", "copied"):
        delete_tree_if_possible(tmp_path / name)


def test_a_store_that_is_too_deep_for_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store").paths.root
    make_deep(store / "partial", DEEPEST)
    for command in COMMANDS[:4]:
        code, _, err = call(capsys, *command.format(store, tmp_path).split())
        assert code == 1
        assert "nested too deeply" in err
        assert len(err) < 2000
    delete_tree(tmp_path / "store")


def test_a_deep_folder_in_the_place_of_a_ticket_of_a_state_and_of_images(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    make_deep(paths.partial_folder("ab" * 32, 3), 1100)
    assert not parts.is_whole(paths.partial_folder("ab" * 32, 3))
    parts.drop(paths, "ab" * 32, 3)
    assert not paths.partial_folder("ab" * 32, 3).exists()
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            make_deep(tmp_path / "images" / part / name, 1100 if (part, name) == ("train", "cat") else 1)
            for number in (1, 2):
                (tmp_path / "images" / part / name / f"{number}.png").write_bytes(b"")
    assert len(scan(tmp_path / "images").train.labels) == 4
    write_folder(tmp_path / "ticket", [("mask.safetensors", b"")], lambda facts: b"{}")
    delete_tree(tmp_path / "images")


def test_errors_keep_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(OSError) as caught:
        exists(tmp_path)
    assert caught.value.errno == errno.EIO
