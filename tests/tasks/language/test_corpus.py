"""Texts of files and folders, and their vocabularies: bytes, words and tokenizers."""

from __future__ import annotations

import gzip
import lzma
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import DataError, MissingExtraError
from ticketry.tasks.language.corpus import Bytes, Tokenizer, Words, read_splits


def test_bytes() -> None:
    assert Bytes().encode("aé".encode(), "it").tolist() == [97, 195, 169]
    assert Bytes().size == 256


def test_words_are_numbered_in_order_and_lines_end() -> None:
    words = Words.from_text(b"a net a net\n\n the net\n")
    assert words.numbers == {"a": 0, "net": 1, "<eos>": 2, "the": 3}
    assert words.encode(b"the net\na\n", "it").tolist() == [3, 1, 2, 0, 2]
    with pytest.raises(DataError, match="the test text has the word 'dense'"):
        words.encode(b"the dense net", "the test text")
    assert Words.from_text("a\u2028b\x0bc\n".encode()).size == 4, "other line breaks are blanks"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "a": 1, "net": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_a_file_of_the_tokenizers_library(file: Path) -> None:
    tokenizer = Tokenizer(file)
    assert (tokenizer.size, tokenizer.encode(b"a dense net", "it").tolist()) == (3, [1, 0, 2])
    other = file.with_name("other.json")
    other.write_text(file.read_text().replace("net", "set"))
    assert Tokenizer(other).describe() != tokenizer.describe()
    gaps = file.with_name("gaps.json")
    gaps.write_text(re.sub(r'"net": *2', '"net": 7', file.read_text()))
    assert Tokenizer(gaps).encode(b"a dense net", "it").tolist() == [1, 0, 7]
    assert Tokenizer(gaps).size == 8


def pairs(tmp_path: Path, *, splits: str = "Whitespace", **options: Any) -> Tokenizer:
    """A tokenizer with byte pairs of the letters a, b and the word ab; options are those of the model."""
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


@pytest.mark.parametrize("text", ["ab a c b", "ab é<eos>"])
def test_letters_without_a_token_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"0\.json leaves out some of '(c|é)' in the test text"):
        pairs(tmp_path).encode(text.encode(), "the test text")
    unknown = pairs(tmp_path, unk_token="?", more=["?"])
    assert unknown.encode(text.encode(), "it").tolist().count(3) == len(re.findall("[cé]", text))


@pytest.mark.parametrize("options", [{}, {"end_of_word_suffix": "</w>"}, {"unk_token": "?", "more": ["?"]}])
def test_a_text_of_known_byte_pairs_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    made = pairs(tmp_path, **options)
    assert len(made.encode(b"ab a<eos>\nb ba", "it")) == 6


def test_byte_level_pairs_know_every_text(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    every = library.pre_tokenizers.ByteLevel.alphabet()
    made = pairs(tmp_path, splits="ByteLevel", more=every)
    assert len(made.encode("aé\n\t☃".encode(), "it")) == 1 + 1 + 2 + 2 + 3  # a blank before, as GPT-2 has it


def test_words_without_a_token_are_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"a": 0}))
    made.save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"words\.json cannot read the test text \(.*UNK.*\): give it a token"):
        Tokenizer(tmp_path / "words.json").encode(b"b", "the test text")


def test_other_files_are_not_tokenizers(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# -- files and folders ------------------------------------------------------------------------------------------------

SHARES = {"validation": Fraction(1, 10), "test": Fraction(1, 5)}


def test_a_file_is_split_into_contiguous_parts(tmp_path: Path) -> None:
    content = bytes(range(65, 115)) * 2
    (tmp_path / "a.txt").write_bytes(content)
    text = read_splits(tmp_path / "a.txt", **SHARES)
    assert (text.train, text.validation, text.test) == (content[:70], content[70:80], content[80:])


def test_no_character_is_split(tmp_path: Path) -> None:
    letters = "aé漢😀" * 25
    (tmp_path / "a.txt").write_text(letters, encoding="utf-8")
    for tenth in range(1, 8):
        text = read_splits(tmp_path / "a.txt", validation=Fraction(tenth, 10) / 7, test=Fraction(1, 7))
        assert "".join(part.decode() for part in (text.train, text.validation, text.test)) == letters


@pytest.mark.parametrize(("packing", "name"), [("", "valid"), (".gz", "validation"), (".xz", "dev")])
def test_a_folder_with_a_file_for_each_split(tmp_path: Path, packing: str, name: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packing]
    for split, content in (("train", b"one"), (name, b"two"), ("test", b"three")):
        (tmp_path / f"{split}.txt{packing}").write_bytes(pack(content))
    text = read_splits(tmp_path, **SHARES)
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
    text = read_splits(tmp_path, **SHARES)
    assert text.train + text.validation + text.test == b"1234567890"


def test_other_files_are_not_texts(tmp_path: Path) -> None:
    def refused(content: bytes, match: str, name: str = "a.txt") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            read_splits(tmp_path / name, **SHARES)

    refused(b"", r"a\.txt is empty")
    refused(b"text\0text" * 9, "byte 4 is 0")
    refused(b"PNG\x89\xff" * 9, "byte 3 is not UTF-8")
    refused(b"abc", "has 3 bytes, too few")
    refused(b"no archive", "cannot be read", "a.txt.gz")
    with pytest.raises(DataError, match="there is no such text"):
        read_splits(tmp_path / "absent", **SHARES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no text files"):
        read_splits(tmp_path / "empty", **SHARES)
