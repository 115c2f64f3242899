"""A store by its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from ticketry.errors import UsageError
from ticketry.lab.store.opening import open_store


def test_an_address_opens_the_same_store_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("somewhere")
    digest = store.put_bytes(b"weights")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert open_store(tmp_path / "somewhere").get_bytes(digest) == b"weights"
    assert open_store(str(tmp_path / "somewhere")).address == str(tmp_path / "somewhere")


def test_an_address_of_no_known_kind_is_refused_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="gopher://"):
        open_store("gopher://somewhere/else")
    assert not list(tmp_path.iterdir())
