"""From bytes to numbers of tokens."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

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


def pairs(tmp_path: Path, *, splits: str = "Whitespace", **options: Any) -> Tokenizer:
    """Byte pairs of the letters a, b and the word ab; options are the model's."""
    library = pytest.importorskip("tokenizers")
    end = options.get("end_of_word_suffix") or ""
    words = dict.fromkeys(["a", "b", "a" + end, "b" + end, "ab" + end, *options.pop("more", [])])
    made = library.Tokenizer(
        library.models.BPE({word: number for number, word in enumerate(words)}, [("a", "b" + end)], **options)
    )
    made.pre_tokenizer = getattr(library.pre_tokenizers, splits)()
    made.add_special_tokens(["<eos>"])
    file = tmp_path / f"{len([*tmp_path.iterdir()])}.json"  # a file is read once a process
    made.save(str(file))
    return Tokenizer(file)


@pytest.mark.parametrize("text", ["ab a c b", "ab abcé", "ab é<eos>"])
def test_letters_without_a_token_are_not_left_out_in_silence(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"0\.json leaves out some of '(c|abcé|é)' in the test text"):
        pairs(tmp_path).encode(text.encode(), "the test text")
    unknown = pairs(tmp_path, unk_token="?", more=["?"])
    assert unknown.encode(text.encode(), "it").tolist().count(3) == len(re.findall("[cé]", text))


@pytest.mark.parametrize("options", [{}, {"end_of_word_suffix": "</w>"}, {"unk_token": "?", "more": ["?"]}])
def test_a_text_that_byte_pairs_know_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    made = pairs(tmp_path, **options)
    assert len(made.encode(b"ab a<eos>\nb ba", "it")) == 6


def test_bytes_in_pairs_know_every_text(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    every = library.pre_tokenizers.ByteLevel.alphabet()
    made = pairs(tmp_path, splits="ByteLevel", more=every)
    assert len(made.encode("aé\n\t☃".encode(), "it")) == 1 + 1 + 2 + 2 + 3  # a blank before, as GPT-2 has it


def test_words_without_a_token_are_told(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"a": 0}))
    made.save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"words\.json cannot read the test text \(.*UNK.*\): give it a token"):
        Tokenizer(tmp_path / "words.json").encode(b"b", "the test text")


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
