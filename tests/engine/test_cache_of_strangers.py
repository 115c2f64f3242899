"""Machine code runs from the cache only if nobody but the user could have written it there."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ticketry.errors import StoreError
from ticketry.files import read_private_bytes, why_not_private, write_atomically
from ticketry.lab.store.paths import local_folder
from ticketry_engine.support import files
from ticketry_engine.support.files import read_cached, write_cached

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
ANOTHER = 4242


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the sticky folder for temporary files, without a home above it."""
    monkeypatch.setenv("HOME", "/nonexistent")
    with tempfile.TemporaryDirectory(prefix="ticketry-test-") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("TICKETRY_CACHE", f"{folder}/cache")
        yield Path(folder)


def _give_away(path: Path) -> None:
    """Give a file or folder to another user; without the right to do so, the user becomes another one instead."""
    if os.geteuid() == 0:
        os.chown(path, ANOTHER, ANOTHER, follow_symlinks=False)
    else:
        pytest.skip("only root can give files away")


def _link(path: Path) -> Path:
    elsewhere = path.rename(path.with_name("elsewhere"))
    path.symlink_to(elsewhere)
    return elsewhere


ATTACKS: dict[str, Callable[[Path], object]] = {
    "the folder is another's": lambda cache: _give_away(cache / "kernels"),
    "others may write in the folder": lambda cache: (cache / "kernels").chmod(0o707),
    "the group may write in the folder": lambda cache: (cache / "kernels").chmod(0o770),
    "a sticky folder that others may write in": lambda cache: (cache / "kernels").chmod(0o1777),
    "the folder is a link": lambda cache: _link(cache / "kernels"),
    "the parent is another's": _give_away,
    "others may write in the parent": lambda cache: cache.chmod(0o777),
    "the group may write in the parent": lambda cache: cache.chmod(0o775),
    "the parent's parent is another's": lambda cache: _give_away(cache.parent),
    "others may write in the parent's parent": lambda cache: cache.parent.chmod(0o777),
    "the parent is another's link": lambda cache: (_link(cache), _give_away(cache)),
    "the parent is a link into a folder that others may write in": lambda cache: _link(cache).chmod(0o777),
    "the file is another's": lambda cache: _give_away(cache / "kernels" / "k.o"),
    "others may write the file": lambda cache: (cache / "kernels" / "k.o").chmod(0o606),
    "the file is a link to one of the user's own": lambda cache: _link(cache / "kernels" / "k.o"),
}
FINE: dict[str, Callable[[Path], object]] = {
    "as it was made": lambda cache: None,
    "a sticky folder above": lambda cache: cache.chmod(0o1777),
    "others may read": lambda cache: [path.chmod(0o755) for path in (cache, cache / "kernels")],
    "the parent is the user's own link": _link,
}


@pytest.fixture
def file(place: Path) -> Path:
    found = files.private_cache_folder("kernels") / "k.o"
    write_cached(found, b"code")
    assert read_cached(found) == b"code"
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_a_cache_that_others_could_write_to_is_neither_read_nor_written(place: Path, file: Path, name: str) -> None:
    ATTACKS[name](place / "cache")
    assert read_cached(file) is None
    if "file" not in name:
        write_cached(file.with_name("new.o"), b"code")
        assert not file.with_name("new.o").exists()


@pytest.mark.parametrize("name", FINE)
def test_a_cache_of_the_users_own_is_used(place: Path, file: Path, name: str) -> None:
    FINE[name](place / "cache")
    assert why_not_private(file.parent) == ""
    assert read_cached(file) == b"code"


def test_folders_above_the_home_folder_are_the_systems_business(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place / "homes" / "me"
    home.mkdir(parents=True, mode=0o755)
    home.parent.chmod(0o777)
    assert "may write" in why_not_private(home / ".cache" / "kernels")
    monkeypatch.setenv("HOME", str(home))
    assert why_not_private(home / ".cache" / "kernels") == ""


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_only_the_user_may_enter_what_is_made(place: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_cached(place / "cache" / "deep" / "kernels" / "k.o", b"code")
    finally:
        os.umask(before)
    made = ("cache", 0o700), ("cache/deep", 0o700), ("cache/deep/kernels", 0o700), ("cache/deep/kernels/k.o", 0o600)
    assert [(name, stat.S_IMODE((place / name).stat().st_mode)) for name, _ in made] == [*made]


def test_in_a_folder_of_several_users_each_has_one_of_their_own(place: Path) -> None:
    cache = place / "cache"
    cache.mkdir()
    cache.chmod(0o1777)
    (cache / "kernels").mkdir()
    _give_away(cache / "kernels")
    mine = files.private_cache_folder("kernels")
    assert mine == cache / f"kernels-{os.geteuid()}"
    write_cached(mine / "k.o", b"code")
    assert read_cached(mine / "k.o") == b"code"
    _give_away(mine)
    assert read_cached(files.private_cache_folder("kernels") / "k.o") is None


def test_that_nothing_is_cached_is_told_once(
    place: Path, file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_warned", set())
    (place / "cache").chmod(0o777)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            write_cached(file, b"code")
    (record,) = caplog.records
    assert f"others may write in {place / 'cache'}" in record.getMessage()
    assert "TICKETRY_CACHE" in record.getMessage()


def test_a_link_is_not_followed_to_code(place: Path) -> None:
    write_atomically(place / "file", b"code", private=True)
    (place / "link").symlink_to(place / "file")
    assert read_private_bytes(place / "file") == b"code"
    with pytest.raises(OSError):
        read_private_bytes(place / "link")


def test_mirrors_are_not_taken_from_others(place: Path) -> None:
    (place / "cache").mkdir()
    (place / "cache").chmod(0o777)
    with pytest.raises(StoreError, match=r"others may write in .*TICKETRY_CACHE"):
        local_folder(f"file://{place}/shared")
