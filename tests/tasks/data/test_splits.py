from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry.errors import TaskError
from ticketry.tasks.data.splits import fewer, hold_out, pick, share_of_each
from ticketry.tasks.task import Split


def slow_hold_out(labels: list[int], *per_class: int) -> list[list[int]]:
    """The documented rule, one example at a time."""
    stream = np.random.PCG64(0)
    numbers = [int(stream.random_raw()) for _ in labels]
    sets: list[list[int]] = [[] for _ in range(len(per_class) + 1)]
    for label in set(labels):
        waiting = sorted((numbers[i], i) for i, other in enumerate(labels) if other == label)
        for position, size in enumerate(per_class, start=1):
            sets[position] += [i for _, i in waiting[:size]]
            waiting = waiting[size:]
        sets[0] += [i for _, i in waiting]
    return [sorted(indices) for indices in sets]


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), sizes=st.lists(st.integers(1, 5), max_size=2))
@settings(deadline=None)
def test_rule_equals_its_slow_form(labels: list[int], sizes: list[int]) -> None:
    found = hold_out(np.array(labels), *sizes)
    assert [indices.tolist() for indices in found] == slow_hold_out(labels, *sizes)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), sizes=st.lists(st.integers(0, 9), min_size=8))
@settings(deadline=None)
def test_another_number_for_each_class(labels: list[int], sizes: list[int]) -> None:
    """Each class is held out as if it were asked for its number."""
    classes = sorted(set(labels))
    numbers = [np.array(sizes[start : start + len(classes)]) for start in (0, 4)]
    found = hold_out(np.array(labels), *numbers)
    for place, label in enumerate(classes):
        expected = slow_hold_out(labels, int(numbers[0][place]), int(numbers[1][place]))
        assert [[i for i in part if labels[i] == label] for part in found] == [
            [i for i in part if labels[i] == label] for part in expected
        ]


@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=5), share=st.fractions(0.01, 0.99))
@settings(deadline=None)
def test_a_share_of_each_class(counts: list[int], share: Fraction) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for found, count in zip(share_of_each(labels, share).tolist(), counts, strict=True):
        assert 1 <= found < count
        exact = share * count
        assert abs(found - exact) <= Fraction(1, 2) or found in (1, count - 1)
    assert share_of_each(np.zeros(25, np.int64), Fraction("0.1")).tolist() == [3]  # 2.5, rounded up


def test_held_out_examples_are_balanced_disjoint_and_complete() -> None:
    labels = np.arange(60_000) % 10
    train, validation = hold_out(labels, 500)
    assert np.bincount(labels[validation]).tolist() == [500] * 10
    assert sorted([*train, *validation]) == list(range(60_000))


def test_the_rule_never_changes() -> None:
    assert np.random.PCG64(0).random_raw(2).tolist() == [11749869230777074271, 4976686463289251617]
    _, validation = hold_out(np.arange(50_000) % 10, 500)
    digest = hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest()
    assert digest == "af1098a0d464d73b2f3b09b2fdd8de672f1f0c83e5abada8b49973d93c352019"


def test_no_global_random_state_is_read_or_written() -> None:
    labels = np.arange(100) % 3
    np.random.seed(1)  # noqa: NPY002
    first, state = hold_out(labels, 4), np.random.get_state()[1].tolist()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert [a.tolist() for a in hold_out(labels, 4)] == [a.tolist() for a in first]
    np.random.seed(1)  # noqa: NPY002
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_pick_copies_as_tensors() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2)
    split = pick(images, np.array([5, 4, 3, 2, 1, 0], np.uint8), np.array([1, 4]))
    assert split.inputs.tolist() == images[[1, 4]].tolist()
    assert split.targets.tolist() == [4, 1]
    assert str(split.targets.dtype) == "torch.int64"
    images[1] = 0
    assert split.inputs[0].tolist() == [[[4, 5], [6, 7]]]


def test_fewer_takes_as_many_of_each_class_and_says_what_cannot_be_had() -> None:
    labels = torch.arange(600) % 3
    split = Split(torch.arange(600), labels)
    few = fewer(split, 30)
    assert few.targets.bincount().tolist() == [10, 10, 10]
    assert torch.equal(few.inputs % 3, few.targets)  # inputs and targets still belong together
    assert set(few.inputs.tolist()) < set(fewer(split, 300).inputs.tolist())  # more data keep what there was
    for count in (31, 0, 603, -3):
        with pytest.raises(TaskError, match="multiple of 3, the number of classes, up to 600"):
            fewer(split, count)
