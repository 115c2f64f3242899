"""Texts with labels: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ticketry.errors import DataError
from ticketry.tasks.fine_tuning import digest_texts, find_text_files, read_texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label,more\n"one, two",0,x\n"say ""hi""",1,y\n'),
        ("a.tsv", 'text\tlabel\none, two\t0\nsay "hi"\t1\n'),
        ("a.jsonl", '{"text": "one, two", "label": 0}\n\n{"text": "say \\"hi\\"", "label": 1, "more": null}\n'),
    ],
)
def test_all_forms_give_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = read_texts(tmp_path / name, ("text",), "label")
    assert found.texts == (("one, two",), ('say "hi"',))
    assert found.labels == ("0", "1")


def test_two_columns_and_a_line_break_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('premise,hypothesis,gold\n"one\ntwo",b,yes\n')
    found = read_texts(tmp_path / "a.csv", ("premise", "hypothesis"), "gold")
    assert (found.texts, found.labels) == ((("one\ntwo", "b"),), ("yes",))


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl", "test.tsv"):
        (tmp_path / name).write_text(name)
    assert [file.name for file in find_text_files(tmp_path).values()] == ["train.csv", "dev.jsonl", "test.tsv"]
    before = digest_texts(tmp_path)
    (tmp_path / "test.tsv").write_text("other")
    assert digest_texts(tmp_path) != before
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(DataError, match="has no file of the test split"):
        find_text_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv has no texts"),
        ("a.csv", b"text,labels\none,1\n", r"line 2 has no column 'label': did you mean labels\? it has text, labels"),
        ("a.csv", b"text,label\none,1\ntwo\n", "line 3 has 1 values, not 2 as the first"),
        ("a.csv", b"text,label\none,\n", "line 2, column 'label' is empty"),
        ("a.csv", b"text,label\n ,1\n", "line 2, column 'text' is empty"),
        ("a.csv", b'text,label\n"one,1\n', "line 2: unexpected end of data"),
        ("a.csv", b"text,label\n\xff,1\n", "byte 11 is not UTF-8"),
        ("a.csv", b"text,label\n\0,1\n", "bytes that are 0"),
        ("a.jsonl", b'{"text": 1\n', "line 1 is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b"[" * 5000, "line 1 is no JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is no JSON"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}', "line 1 is no JSON"),
    ],
)
def test_what_is_no_text_with_labels_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_texts(tmp_path / name, ("text",), "label")


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no such texts"):
        find_text_files(tmp_path / "absent")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(DataError, match=r"is none of \.csv, \.tsv, \.jsonl"):
        find_text_files(tmp_path / "a.parquet")
