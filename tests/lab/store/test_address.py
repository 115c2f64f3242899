"""What --store may be."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ticketry.errors import UsageError
from ticketry.lab.store.paths import (
    canonical_url,
    display_address,
    local_folder,
    read_mirror_id,
    shared_url,
    split_address,
)
from ticketry.lab.store.store import open_store


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/", "s3://bucket"),
        ("gs://bucket//a/b/", "gs://bucket/a/b"),
        ("az://container/a", "az://container/a"),
        ("file:///data/shared", "file:///data/shared"),
        ("file://localhost/data", "file:///data"),
    ],
)
def test_an_address_has_one_form(given: str, known: str) -> None:
    assert canonical_url(given) == known
    assert canonical_url(known) == known


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host/a", "ftp://"),
        ("s3://", "s3://bucket/folder"),
        ("s3:///a", "s3://bucket/folder"),
        ("file://host/a", "file:///path"),
        ("file:///", "file:///path"),
        ("s3://bucket/../other", "not a plain name"),
        ("s3://bucket/%2e%2e/other", "not a plain name"),
        ("s3://me:hush@bucket/a", "user name or password"),
        ("s3://bucket/a?X-Amz-Signature=hush", "signature"),
        ("az://container/a#hush", "signature"),
    ],
)
def test_what_is_no_address_is_refused_and_no_secret_repeated(address: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        local_folder(address)
    assert "hush" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_mirror_leads_back_to_its_address() -> None:
    place = local_folder("s3://bucket/a/")
    assert place == local_folder("s3://bucket/a") != local_folder("s3://bucket/b")
    assert shared_url(place) == "s3://bucket/a"
    assert display_address(place / "runs" / "one") == "s3://bucket/a/runs/one"
    assert len(read_mirror_id(place)) == 32
    assert read_mirror_id(place) != read_mirror_id(local_folder("s3://bucket/b"))
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


def test_the_address_of_a_ticket_has_that_of_its_store() -> None:
    assert split_address("s3://b/runs/x/runs/r/tickets/t") == ("s3://b/runs/x", ("runs", "r", "tickets", "t"))
    assert split_address("s3://b/x") is None
    assert split_address("s3://runs/x") is None


def test_an_address_opens_the_same_store_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("somewhere")
    digest = store.put_bytes(b"weights")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert open_store(tmp_path / "somewhere").get_bytes(digest) == b"weights"
    assert open_store(str(tmp_path / "somewhere")).address == str(tmp_path / "somewhere")
