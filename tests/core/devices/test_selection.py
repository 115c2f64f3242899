"""The largest of numbers of any type, against a stable sort."""

from __future__ import annotations

from itertools import product
from math import inf

import pytest
import torch
from torch import Tensor

from ticketry.core import sharding as selection
from ticketry.core.allocate import allocate, allocate_sharded_magnitudes
from ticketry.core.mask import Mask

TINY = 2.0**-149
"""The smallest number of float32 above 0."""
KINDS = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "halves": (torch.bfloat16, torch.float16),
    "mixed": (torch.float32, torch.float64, torch.bfloat16),
    "integers": (torch.int64, torch.uint8),
}


def numbers(types: tuple[torch.dtype, ...], seed: int) -> dict[str, Tensor]:
    """Some spread over many orders of size; ties, zeros of both signs, infinities and the smallest of float32."""
    draw = torch.Generator().manual_seed(seed)
    special = torch.tensor([0.0, -0.0, inf, -inf, TINY, -TINY, 1.0, 1.0, -1.0], dtype=torch.float64)
    found = {}
    for place, shape in enumerate([(5, 9), (1, 1), (3, 2, 7), (4, 11)]):
        wide = torch.randn(shape, generator=draw, dtype=torch.float64)
        wide = wide * 10.0 ** torch.randint(-6, 4, shape, generator=draw)
        some = special[torch.randint(len(special), shape, generator=draw)]
        values = torch.where(torch.rand(shape, generator=draw) < 0.4, some, wide)
        dtype = types[place % len(types)]
        found[str(place)] = values.to(dtype) if dtype.is_floating_point else values.nan_to_num(0, 99, 0).abs().to(dtype)
    return found


def sorted_slowly(found: dict[str, Tensor], within: Mask | None, count: int) -> dict[str, Tensor]:
    flat = torch.cat([values.double().flatten() for values in found.values()])
    possible = torch.ones(len(flat), dtype=torch.bool)
    if within is not None:
        possible = torch.cat([within[name].flatten() for name in found])
    order = flat.argsort(descending=True, stable=True)
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[possible[order]][:count]] = True
    parts = kept.split([values.numel() for values in found.values()])
    return {name: part.view(values.shape) for part, (name, values) in zip(parts, found.items(), strict=True)}


@pytest.fixture(params=[None, 7], ids=["together", "by digits, a few at a time"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(selection, "_CHUNK", request.param)


@pytest.mark.parametrize("types", KINDS.values(), ids=KINDS)
@pytest.mark.usefixtures("chunk")
def test_one_ranking(types: tuple[torch.dtype, ...]) -> None:
    for seed, inside in product(range(2), (False, True)):
        found = numbers(types, seed)
        draw = torch.Generator().manual_seed(seed)
        within = Mask({name: torch.rand(each.shape, generator=draw) < 0.7 for name, each in found.items()})
        total = sum(each.numel() for each in found.values())
        for count in (1, 17, 60, within.kept):
            chosen = selection.Ranking(found, within if inside else None)
            cut = chosen.find_threshold(list(found), count)
            left, kept = cut.at_key, {}
            for name in found:
                kept[name], taken = chosen.select_above(name, selection.Threshold(cut.key, left))
                left -= taken
            expected = sorted_slowly(found, within if inside else None, count)
            assert all(torch.equal(kept[name], expected[name]) for name in found), (seed, inside, count, total)


@pytest.mark.parametrize("types", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("distribution", ["layerwise", "uniform", "erk"])
@pytest.mark.usefixtures("chunk")
def test_each_layer_by_itself(types: tuple[torch.dtype, ...], distribution: str) -> None:
    found = numbers(types, 3)
    mask = allocate(found, 0.4, distribution=distribution, keep_at_least=1)
    for name, values in found.items():
        expected = sorted_slowly({name: values}, None, int(mask[name].sum()))
        assert torch.equal(mask[name], expected[name])


@pytest.mark.parametrize("types", [types for types in KINDS.values() if types[0].is_floating_point])
@pytest.mark.usefixtures("chunk")
def test_magnitudes_are_ranked_without_their_signs(types: tuple[torch.dtype, ...]) -> None:
    found = numbers(types, 4)
    sizes = {name: each.abs() for name, each in found.items()}
    mask = allocate_sharded_magnitudes(found, 0.3, keep_at_least=1)
    assert mask == allocate(sizes, 0.3, keep_at_least=1)
    assert (mask & Mask(sorted_slowly(sizes, None, mask.kept))).kept >= mask.kept - 1  # the single weight is kept


def test_denormals_are_0_where_arithmetic_takes_them_for_0() -> None:
    """As when they were compared as numbers: a training flushes them."""
    scores = {"a": torch.tensor([0.0, TINY, -TINY, -1.0])}
    assert allocate(scores, 0.25)["a"].tolist() == [False, True, False, False]
    if torch.set_flush_denormal(True):
        try:
            assert allocate(scores, 0.25)["a"].tolist() == [True, False, False, False]
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.slow
def test_a_cut_takes_few_bytes_a_weight() -> None:
    from torch.profiler import ProfilerActivity, profile

    scores = {str(place): torch.rand(1024, 2048) for place in range(4)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        allocate(scores, 0.1)
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert 8 << 20 <= most < 12 * (8 << 20), most
