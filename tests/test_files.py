"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ticketry.errors import OutsideError
from ticketry.files import content_of, file_digest, flush, join_inside, replacing, write_atomically


def fail_after_writing(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_replacing_keeps_the_old_file_if_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with replacing(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        fail_after_writing(temporary)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_call_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "file"
    write_atomically(target, b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new", durable=True)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_flushed_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_atomically(tmp_path / "file", b"12345", durable=True)
    assert seen == [(5, False)]
    write_atomically(tmp_path / "other", b"12345")
    flush(tmp_path)
    assert len(seen) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_who_may_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "shared" / "file", b"")
        write_atomically(tmp_path / "own" / "file", b"", private=True)
        with replacing(tmp_path / "shared" / "exchanged") as place:
            (tmp_path / "another").touch(0o600)
            os.replace(tmp_path / "another", place)
    finally:
        os.umask(before)
    for name in ("file", "exchanged"):
        assert stat.S_IMODE((tmp_path / "shared" / name).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "own" / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_a_folder_that_is_not_there_is_made_if_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "file", b"", parents=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_digest(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# -- kept inside -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=12) | st.sampled_from(["..", ".", "", "/", "a/../..", "~", "\\", "a\0", "C:", "\n"]),
                min_size=1, max_size=3))  # fmt: skip
def test_no_name_leads_out(tmp_path: Path, names: list[str]) -> None:
    """Against the system's own way to read a path."""
    try:
        found = join_inside(tmp_path, *names)
    except OutsideError:
        return
    real = os.path.realpath(found)
    assert os.path.dirname(real).startswith(os.path.realpath(tmp_path))
    assert found.relative_to(tmp_path).parts == tuple(names), "it is the names and nothing else"


def test_links_out_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "back").symlink_to("..")
    (root / "own").symlink_to(root)
    for name in ("out", "back"):
        with pytest.raises(OutsideError, match="is a link to outside"):
            join_inside(root, name)
        with pytest.raises(OutsideError, match="is a link to outside"):
            join_inside(root, name, "file")
    assert join_inside(root, "own", "file") == root / "own" / "file"
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert join_inside(linked, "file") == linked / "file", "the root itself may be a link: the user named it"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    for name in ("pipe", "absent", "."):
        with pytest.raises(OSError):
            content_of(tmp_path / name)
    with pytest.raises(OSError, match="no file, but a pipe or a device"):
        content_of(Path("/dev/zero"))
    with pytest.raises(OSError, match="larger than"):
        content_of(tmp_path / "file", most=4)
    assert content_of(tmp_path / "file", most=5) == b"12345"
