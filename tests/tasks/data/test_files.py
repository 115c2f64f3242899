from __future__ import annotations

import gzip
import hashlib
import lzma
from pathlib import Path

import pytest

from ticketry.errors import DataError
from ticketry.tasks.data.locate import unpacked

CONTENT = bytes(range(256)) * 50
MD5 = hashlib.md5(CONTENT).hexdigest()
PACKED = {"plain": CONTENT, "file.gz": gzip.compress(CONTENT), "file.xz": lzma.compress(CONTENT)}


@pytest.mark.parametrize("name", PACKED)
def test_content_is_the_same_however_it_is_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[name])
    assert unpacked(tmp_path / name, MD5) == CONTENT


@pytest.mark.parametrize("name", PACKED)
def test_a_truncated_file_is_refused_with_both_digests(tmp_path: Path, name: str) -> None:
    cut = PACKED[name][:-20]
    (tmp_path / name).write_bytes(cut)
    with pytest.raises(DataError) as caught:
        unpacked(tmp_path / name, MD5)
    for part in (str(tmp_path / name), MD5, hashlib.md5(cut).hexdigest(), "Delete it"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("position", [0, 1000])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str, position: int) -> None:
    changed = bytearray(PACKED[name])
    changed[position % len(changed)] ^= 1
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(DataError, match=name):
        unpacked(tmp_path / name, MD5)


def test_another_content_is_named_by_its_own_digest(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=f"md5 {MD5} expected, {hashlib.md5(b'other').hexdigest()} found"):
        unpacked(tmp_path / "file.gz", MD5)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        unpacked(tmp_path, MD5)
