"""The native loop: every operation on every block, and a barrier that holds threads together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arenas import library
from probes import Mark, Round
from ticketry_engine.kernels.emitter import Emitter, StateSlot, Written
from ticketry_engine.kernels.program import Op, Program


@given(
    images=st.sampled_from([1, 2, 8, 16]),
    batch=st.integers(0, 70),
    threads=st.integers(1, 4),
    split=st.sampled_from(["batch", "parts"]),
    marks=st.lists(st.integers(1, 1000), max_size=4),
)
def test_each_operation_sees_each_image_once(images: int, batch: int, threads: int, split: str, marks: list) -> None:
    """Also with more threads than blocks or images, a last block that is not full, and nothing to do."""
    program = Program([Op(Mark(), (mark,)) for mark in marks], images, 64, library("host"), split)
    found = torch.zeros(batch + 1, dtype=torch.int64)
    program.run(batch, [found.data_ptr()], threads)
    assert found[:batch].tolist() == [sum(marks)] * batch
    assert found[batch] == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_meet_after_each_operation(threads: int) -> None:
    """Thousands of rounds, in each of which a thread needs what its neighbour wrote in the last one."""
    rounds, blocks = (500, 20) if threads < 3 else (100, 5)  # where others work too, threads wait for their turn
    ops = [Op(Round(), (number % 2, 1 - number % 2)) for number in range(rounds)]
    program = Program(ops, 1, 2 * 64 * 64, library("host"), "parts")
    found = np.zeros(threads, np.int64)
    for call in range(1, 4):
        program.run(blocks, [found.ctypes.data], threads)
        assert found.tolist() == [call * rounds * blocks] * threads


class _Halve(Written):
    """Half of each of the batch's float32, from the first tensor to the second."""

    def write(self, e: Emitter) -> None:
        first = e.state(StateSlot.FIRST)
        with e.loop(first, e.b.add(first, e.state(StateSlot.IMAGES))) as image:
            at = e.b.mul(image.index, e.i64(4))
            half = e.b.fmul(e.load_f32(e.external(e.i64(0)), at), e.f32(0.5))
            e.b.store(half, e.at(e.external(e.i64(1)), at), align=4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("denormals", [True, False])
def test_denormal_numbers_are_kept_or_count_as_zero_for_the_time_of_a_call(denormals: bool, threads: int) -> None:
    values = torch.tensor([1.0, -3e38, 2e-38, 1e-38, 1e-44, 0.0, 1.5e-38] * 4)  # the third has a denormal half
    found, outside = torch.empty_like(values), torch.tensor([1e-38])
    program = Program([Op(_Halve(), ())], 2, 64, library("host"), "batch", denormals)
    program.run(len(values), [values.data_ptr(), found.data_ptr()], threads)
    expected = values.double() / 2
    flushed = torch.where(expected.abs() < torch.finfo(torch.float32).tiny, 0.0, expected)
    assert torch.equal(found, (expected if denormals else flushed).float())
    assert float(outside / 2) > 0, "torch computes as before"
