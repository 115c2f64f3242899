"""The native loop: every operation on every block, and a barrier that holds threads together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arenas import library
from probes import Mark, Round
from ticketry.engine.cpu.program import Op, Program


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
