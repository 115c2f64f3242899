"""Kept plans: found again exactly, never when anything they depend on is another, and done without where they cannot
be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.plan import region_programs
from ticketry_engine.plan.region_programs import compute_graph_digest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    return tmp_path


def compiled(seed: int = 0) -> tk.engine.Compiled:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 4)
    model = nn.Sequential(*layers)
    return tk.compile(model, tk.prune(model, density=0.4), torch.randn(2, 3, 8, 8), threads=1)


def plans(cache: Path) -> list[Path]:
    return sorted((cache / "plans").glob("*.plan"))


def test_a_second_process_packs_nothing(cache, monkeypatch):
    x = torch.randn(16, 3, 8, 8)
    wanted = compiled()(x)
    assert plans(cache)

    for planning in ("Emission", "choose_layout"):
        monkeypatch.setattr(region_programs, planning, None)
    again = compiled()
    assert torch.equal(again(x), wanted)
    assert again._library.compiled == 0
    (program,) = again._natives[0].programs.values()
    assert all(op.label for op in program.ops)
    assert again.weight_bytes > 0


def test_damaged_plans_and_missing_kernels_are_made_anew(cache):
    x = torch.randn(5, 3, 8, 8)
    wanted = compiled()(x)
    for spoil in (
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ):
        for path in plans(cache):
            path.write_bytes(spoil(path.read_bytes()))
        assert torch.equal(compiled()(x), wanted)
    for path in (cache / "kernels").iterdir():
        path.unlink()
    assert torch.equal(compiled()(x), wanted)
    assert not torch.equal(compiled(1)(x), wanted)
    assert len({compute_graph_digest(compiled(seed).graph) for seed in (0, 0, 1)}) == 2


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TICKETRY_CACHE", str(blocked))
    assert compiled()(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_the_oldest_plans_go(cache, monkeypatch):
    compiled()(torch.randn(1, 3, 8, 8))
    (old, *_) = plans(cache)
    for path in plans(cache):
        os.utime(path, (1, 1))
    monkeypatch.setattr(region_programs, "_MOST_BYTES", sum(path.stat().st_size for path in plans(cache)))
    monkeypatch.setattr(region_programs, "_STORED_BETWEEN", 1)
    compiled(1)(torch.randn(1, 3, 8, 8))
    assert not old.exists()
    assert sum(path.stat().st_size for path in plans(cache)) <= region_programs._MOST_BYTES


def test_a_plan_comes_back_as_it_was_stored(cache):
    fast = compiled()
    (native,) = fast._natives
    store = native._cached_plans
    rng = np.random.default_rng(0)
    emission = native._emit_plan(native.choose_plan(16, 1))
    tables = (rng.normal(size=(3, 4)).astype(np.float32), 7, np.arange(5, dtype=np.uint16), np.zeros((0, 2), np.int32))
    op = type(emission.ops[0])(emission.ops[0].kernel, tables, "layer")
    native.library.addresses([op.kernel])
    store.store_record([op], {"arena": 5}, "key")
    (found,), facts = store.fetch_record("key")
    assert (facts, found.label) == ({"arena": 5}, "layer")
    for made, wanted in zip(found.args, tables, strict=True):
        assert np.array_equal(made, wanted)
        assert isinstance(wanted, int) or made.dtype == wanted.dtype
    assert store.fetch_record("another key") is None
