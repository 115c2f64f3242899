"""A search in a container of Azure's emulator, killed on one machine and gone on with on another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azurite import azurite_server, environment, made_container
from faults.disturbed import difference, left_behind
from ticketry.lab.remote.buckets import Bucket

SEARCH = [
    *("search", "iterative", "--task", "digits", "--replicates", "1", "--levels", "1", "--rewind", "3it", "--json"),
    *("--recipe.length", "400it", "--checkpoint-seconds", "0.05", "--workers", "0"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with azurite_server() as endpoint:
        yield endpoint


def begun(folder: Path, server: str, machine: str, *words: str) -> subprocess.Popen[str]:
    """A command on the machine of that name, whose cache is its own."""
    known = {**os.environ, **environment(server), "TICKETRY_LEASE_SECONDS": "4"}
    known["TICKETRY_CACHE"] = str(folder / machine)
    command = [sys.executable, "-m", "ticketry", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder / "work", env=known, text=True, **pipes)


def result(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.slow
def test_killed_on_one_machine_it_goes_on_on_another_with_the_same_bits(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    usual = result(begun(tmp_path, server, "alone", *SEARCH, "--store", "store"))
    wanted = left_behind(work)
    (work / "store").rename(tmp_path / "undisturbed")
    url = f"az://{made_container(server, f'kill-{uuid.uuid4().hex}')}/of/us"
    first = begun(tmp_path, server, "one", *SEARCH, "--store", url)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    bucket, limit = Bucket(url), time.monotonic() + 250
    while not list(bucket.list("partial")):
        assert first.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = result(begun(tmp_path, server, "two", *SEARCH, "--store", url))
    assert second["now"]["steps_trained"] < usual["now"]["steps_trained"]
    assert result(begun(tmp_path, server, "three", *SEARCH, "--store", url))["now"]["segments_trained"] == 0
    assert result(begun(tmp_path, server, "three", "store", "copy", url, "store", "--json"))["files"] > 5
    assert result(begun(tmp_path, server, "four", "store", "check", "--store", url, "--json"))["sound"]
    assert not difference(left_behind(work), wanted)
