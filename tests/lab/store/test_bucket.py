"""A bucket behind a network that fails: tried again, told clearly, and without any secret."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import Faults, environment, free_port, made_bucket
from ticketry.errors import StoreError
from ticketry.lab.store.objects import Bucket, limit_retry_time
from ticketry.lab.store.store import open_store


@pytest.fixture
def faults(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A proxy that does no harm yet, before a bucket called harmed."""
    made_bucket(s3, "harmed")
    with Faults(s3, {}, silence=0.5) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.mark.slow
def test_every_kind_of_fault_is_overcome(faults: Faults) -> None:
    bucket = Bucket("s3://harmed/of/us")
    faults.rates = {"busy": 0.1, "refused": 0.1, "cut": 0.1, "unanswered": 0.05}
    for number in range(60):
        data = f"{number}".encode() * 400
        assert bucket.create_if_absent(f"one/{number}", data)
        assert not bucket.create_if_absent(f"one/{number}", b"another")
        assert bucket.get(f"one/{number}") == data
        bucket.put("other", data)
        assert bucket.get("other") == data
    assert {one.name for one in bucket.list("one/")} == {f"one/{number}" for number in range(60)}
    assert min(faults.counts[kind] for kind in faults.rates) > 5


def test_a_network_that_is_away_for_a_while_is_waited_for(faults: Faults) -> None:
    bucket, began = Bucket("s3://harmed/of/us"), time.monotonic()
    faults.away = True
    threading.Timer(1, lambda: setattr(faults, "away", False)).start()
    bucket.put("late", b"data")
    assert time.monotonic() - began > 0.8


def test_what_stays_away_is_told_with_time_and_tries(faults: Faults) -> None:
    bucket = Bucket("s3://harmed/of/us")
    faults.away = True
    unreachable = r"cannot read s3://harmed/of/us/x: no success in [01] s and \d+ tries"
    with limit_retry_time(1.0), pytest.raises(StoreError, match=unreachable):
        bucket.get("x")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_an_address_that_nobody_answers_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(f"http://127.0.0.1:{free_port()}").items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(StoreError, match="no success in"):
        open_store("s3://bucket/a")
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("cache")
def test_no_bucket_and_no_permission(cloud: str, monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    with pytest.raises(StoreError, match=r"there is no bucket not-made\b"):
        open_store("s3://not-made/a")
    with Faults(s3, {}) as proxy:
        monkeypatch.setattr(proxy, "_fault", lambda: "denied")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(StoreError, match="no permission to read there") as error:
            open_store(cloud)
    assert "secret-of-a-test" not in str(error.value)
    assert "Signature" not in str(error.value)
