"""Two searches on one store at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from faults.searching import Search, assert_same


@pytest.mark.slow
def test_two_searches_on_one_store(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    rivals = [Search(tmp_path / "store", workers=0) for _ in range(2)]
    results = [rival.result() for rival in rivals]
    for result in results:
        assert_same(result, undisturbed)
    steps = [result["now"]["steps_trained"] for result in results]
    assert sum(steps) == undisturbed["now"]["steps_trained"], steps


@pytest.mark.slow
def test_a_killed_rival_does_not_block(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    store = tmp_path / "store"
    first = Search(store, workers=1)
    assert first.wait_for("partial/*.safetensors")  # it trains, so it holds a lock
    second = Search(store, workers=0)
    time.sleep(3)
    first.kill_all()
    first.finish()
    assert_same(second.result(), undisturbed)
