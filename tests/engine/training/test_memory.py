"""Memory of a step that is used again: who has which bytes when, and that nothing is left over in it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from arenas import targets
from engine.training.regions import layer, region
from engine.training.test_region_step import library
from engine.training.test_sparse_training import MODELS, data, same_width
from samples import sample
from ticketry.errors import EngineError
from ticketry.tasks.models.image_models import Block, ResNet
from ticketry_engine.kernels.program import Program
from ticketry_engine.kernels.training.layer import Batch, build_border_ops
from ticketry_engine.plan.storage import Buffer, BufferAllocator
from ticketry_engine.training.plan import LAYERS, TrainingPlan, compute_lifetimes, values_read_in_backward

SIZES = {"a": 64, "b": 128, "c": 192, "d": 448}
"""Layout -> bytes."""


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_places_are_given_once(data: st.DataObject) -> None:
    """Against a list of who wrote which byte last, whether it may still be read, and by whom."""
    arena, live, read = BufferAllocator(), list[Buffer](), list[Buffer]()
    last: dict[int, tuple[object, int]] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["take", "take", "give", "settle"]))
        if what == "take":
            layout = data.draw(st.sampled_from(sorted(SIZES)))
            place, clean = arena.allocate(SIZES[layout], layout)
            assert place.end - place.begin == SIZES[layout]
            assert place.end <= arena.size
            assert not any(place.overlaps(other) for other in live)
            same = [(other.begin, other.layout) == (place.begin, layout) for other in read if place.overlaps(other)]
            assert all(same), "operations that wait may still read other layouts there"
            before = {last.get(byte) for byte in range(place.begin, place.end)}
            assert clean == (before == {(layout, place.begin)})
            last |= dict.fromkeys(range(place.begin, place.end), (layout, place.begin))
            live.append(place)
        elif what == "give" and live:
            place = live.pop(data.draw(st.integers(0, len(live) - 1)))
            arena.release(place)
            read.append(place)
        elif what == "settle":
            arena.free_released_buffers()
            read.clear()


def test_free_bytes_are_joined_and_taken_before_new_ones() -> None:
    arena = BufferAllocator()
    one, other = (arena.allocate(64, name)[0] for name in ("one", "other"))
    arena.release(one)
    assert arena.allocate(64, "third")[0].begin == 128, "operations that wait may still read it"
    arena.release(other)
    arena.free_released_buffers()
    whole, clean = arena.allocate(128, "whole")
    assert (whole.begin, whole.end, clean, arena.size) == (0, 128, False, 192)
    assert not arena.is_exclusive(one)
    assert arena.is_exclusive(Buffer(128, 192, "third"))


@pytest.mark.parametrize("where", targets())
@pytest.mark.parametrize(("size", "halo"), [((5, 7), 1), ((1, 1), 3)])
def test_borders(where: str, size: tuple[int, int], halo: int) -> None:
    value = Batch.build(3, size, halo, blocks=2, offset=128)
    program = Program(build_border_ops(value), 32, 128 + value.bytes + 64, library(where))
    session = program.open_session()
    memory = session.arena.view(np.float32)
    memory[:] = np.arange(1, len(memory) + 1)
    before = memory.copy()
    session.run(0, len(program.ops))
    expected, g = before.copy(), value.geometry
    for plane in range(3 * 2):
        start = (128 + plane * g.bytes) // 4
        inside = {g.pixel_position(row, column) for row in range(size[0]) for column in range(size[1])}
        for position in range(g.bytes // g.position_bytes):
            if position not in inside:
                expected[start + 16 * position : start + 16 * (position + 1)] = 0
    assert np.array_equal(memory, expected)


def gradients(fast: nn.Module, x: Tensor) -> list[Tensor]:
    fast.zero_grad()
    fast(x).square().sum().backward()
    return [parameter.grad for parameter in fast.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", sample(MODELS, ["resnet"]))
@pytest.mark.parametrize("images", sample([40, 16], 1))
def test_memory_that_is_used_again_changes_no_bit(name: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what a step gives in memory that is new, or where every value has a place of its own."""
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().train()
    mask = tk.prune(model, density=0.3, distribution="layerwise")
    x = data(shape, images)[0]
    used, fresh, apart = (tk.sparse_training(copy.deepcopy(model), mask, x) for _ in range(3))
    gradients(used, 100 * x.flip(0))
    found = gradients(used, x)
    expected = [gradients(fresh, x)]
    with monkeypatch.context() as changed:
        changed.setattr(TrainingPlan, "runs_by_block", lambda *_: False)
        changed.setattr(TrainingPlan, "_only_convolutions_read", lambda *_: False)
        expected.append(gradients(apart, x))
    for wanted in expected:
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def a_step_of_resnet(repeats: tuple[int, int, int], images: int) -> TrainingPlan:
    """The plan of a step that was made, forward and back."""
    model = ResNet((3, 16, 16), 10, repeats=repeats, width=16, scale=same_width, block=Block).train()
    x = data((3, 16, 16), images)[0]
    fast = tk.sparse_training(model, tk.prune(model, density=0.2, distribution="layerwise"), x)
    fast(x).sum().backward()
    (step,) = (step for unit in fast._units for step in unit.steps)
    (plan,) = step._plans.values()
    return plan


def test_norms_are_computed_again_and_memory_is_shared() -> None:
    plan = a_step_of_resnet((2, 2, 2), 64)
    lives = compute_lifetimes(plan.region)
    assert lives.recomputed
    for name, maker in lives.recomputed.items():
        readers = [node for node in plan.region.nodes if name in values_read_in_backward(node)]
        assert maker.op == "batch_norm"
        assert all(node.op in LAYERS for node in readers)
    values = sum(plan.value_layout(name).bytes for name in plan.values)
    assert plan.program.arena <= 0.85 * values, "gradients, and what is computed again, lie where values lay"


def test_what_one_convolution_reads_has_the_memory_of_a_block() -> None:
    """Of five blocks, between a norm and the convolution behind it; where a sum reads it too, it is there whole."""
    plan = a_step_of_resnet((1, 1, 1), 80)
    passing = {name for name, value in plan.values.items() if value.passing}
    readers = {name: [node for node in plan.region.nodes if name in node.inputs] for name in plan.values}
    assert passing == set(compute_lifetimes(plan.region).passing) == plan.passing
    assert passing
    for name in passing:
        (reader,) = readers[name]
        assert reader.op in LAYERS
        assert 5 * plan.values[name].bytes == plan.value_layout(name).bytes
    assert any(len(nodes) > 1 for nodes in readers.values())


def test_a_value_that_is_still_read_is_never_lost() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    whole = region(model, layer("x", "y", "0", model[0]))
    plan = TrainingPlan(whole, {"x": (3, 8, 8)}, {}, 40, frozenset(), library("host"))
    plan.store_value("y", passing=True)
    with pytest.raises(AssertionError, match=r"'y'.*only their last block is stored"):
        plan.append_collected_ops("forward")
    plan.release_value("y")
    plan.append_collected_ops("forward")


def test_a_batch_beyond_what_tables_reach_is_told_before_kernels_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 GB, where numbers of 32 bits end; here of a megabyte, which is between both batches."""
    monkeypatch.setattr("ticketry_engine.training.plan.LARGEST_ARENA", 1 << 20)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    mask, x = tk.prune(model, 0.3), torch.randn(16, 3, 12, 12)
    fast = tk.sparse_training(model, mask, x)
    with torch.no_grad():
        wanted = mask.apply_(copy.deepcopy(model))(x)
    assert torch.allclose(fast(x), wanted, atol=1e-5)
    with pytest.raises(EngineError, match=r"a batch of 512 needs more working memory .* train with smaller batches"):
        fast(x.repeat(32, 1, 1, 1))
