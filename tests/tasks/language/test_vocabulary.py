"""From bytes to numbers of tokens."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ticketry.errors import DataError, MissingExtraError
from ticketry.tasks.language.corpus import Bytes, Tokenizer, Words


def test_bytes() -> None:
    assert Bytes().encode("aé".encode(), "it").tolist() == [97, 195, 169]
    assert Bytes().size == 256


def test_words_are_numbered_as_they_come_up_and_lines_end() -> None:
    words = Words.of(b"a net a net\n\n the net\n")
    assert words.numbers == {"a": 0, "net": 1, "<eos>": 2, "the": 3}
    assert words.encode(b"the net\na\n", "it").tolist() == [3, 1, 2, 0, 2]
    with pytest.raises(DataError, match="the test text has the word 'dense'"):
        words.encode(b"the dense net", "the test text")


def test_a_line_ends_at_its_end_alone() -> None:
    """As a file is read line by line: other characters that some call line breaks are blanks within it."""
    assert Words.of("a\u2028b\x0bc\n".encode()).size == 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "a": 1, "net": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_a_file_of_the_library_tokenizers(file: Path) -> None:
    tokenizer = Tokenizer(file)
    assert (tokenizer.size, tokenizer.encode(b"a dense net", "it").tolist()) == (3, [1, 0, 2])
    other = file.with_name("other.json")
    other.write_text(file.read_text().replace("net", "set"))
    assert Tokenizer(other).describe() != tokenizer.describe()


def test_a_vocabulary_that_leaves_numbers_out_has_room_for_the_largest(file: Path) -> None:
    """Networks have an entry for each number below the size; it was the count of tokens."""
    gaps = file.with_name("gaps.json")
    gaps.write_text(re.sub(r'"net": *2', '"net": 7', file.read_text()))
    assert Tokenizer(gaps).encode(b"a dense net", "it").tolist() == [1, 0, 7]
    assert Tokenizer(gaps).size == 8


def test_what_is_no_tokenizer(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        _ = Tokenizer(tmp_path / "absent.json").size
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json is no file of the library tokenizers"):
        _ = Tokenizer(tmp_path / "bad.json").size
    with pytest.raises(DataError, match="makes no tokens of the test text"):
        Tokenizer(file).encode(b"  ", "the test text")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"ticketry\[text\]"):
        _ = Tokenizer(tmp_path / "another.json").size
