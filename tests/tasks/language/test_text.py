"""Texts of one's own: what is read, how it is cut, and what is refused."""

from __future__ import annotations

import gzip
import lzma
from fractions import Fraction
from pathlib import Path

import pytest

from ticketry.errors import DataError
from ticketry.tasks.language.corpus import read

SHARES = {"validation": Fraction(1, 10), "test": Fraction(1, 5)}


def test_a_file_is_cut_into_contiguous_parts(tmp_path: Path) -> None:
    content = bytes(range(65, 115)) * 2
    (tmp_path / "a.txt").write_bytes(content)
    text = read(tmp_path / "a.txt", **SHARES)
    assert (text.train, text.validation, text.test) == (content[:70], content[70:80], content[80:])


def test_no_character_is_cut_apart(tmp_path: Path) -> None:
    letters = "aé漢😀" * 25
    (tmp_path / "a.txt").write_text(letters, encoding="utf-8")
    for tenth in range(1, 8):
        text = read(tmp_path / "a.txt", validation=Fraction(tenth, 10) / 7, test=Fraction(1, 7))
        assert "".join(part.decode() for part in (text.train, text.validation, text.test)) == letters


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_a_folder_with_a_file_for_each_split(tmp_path: Path, packing: str, name: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packing]
    for split, content in (("train", b"one"), (name, b"two"), ("test", b"three")):
        (tmp_path / f"{split}.txt{packing}").write_bytes(pack(content))
    text = read(tmp_path, **SHARES)
    assert (text.train, text.validation, text.test) == (b"one", b"two", b"three")


def test_other_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for path, content in (
        ("b.txt", "3"),
        ("a/z.md", "12"),
        ("a/z.bin", "no"),
        (".git/x.txt", "no"),
        ("c.text", "4567890"),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    text = read(tmp_path, **SHARES)
    assert text.train + text.validation + text.test == b"1234567890"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    def refused(content: bytes, match: str, name: str = "a.txt") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            read(tmp_path / name, **SHARES)

    refused(b"", r"a\.txt is empty")
    refused(b"text\0text" * 9, "byte 4 is 0")
    refused(b"PNG\x89\xff" * 9, "byte 3 is not UTF-8")
    refused(b"abc", "has 3 bytes, too few")
    refused(b"no archive", "cannot be read", "a.txt.gz")
    with pytest.raises(DataError, match="there is no such text"):
        read(tmp_path / "absent", **SHARES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text files"):
        read(tmp_path / "empty", **SHARES)
