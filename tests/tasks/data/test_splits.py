"""Splits of data sets: held-out examples, fewer examples, averaged images, and the prepared copy on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ticketry.errors import TaskError
from ticketry.tasks import data
from ticketry.tasks.data.splits import (
    average_pixels,
    count_share_of_each,
    hold_out,
    load_or_prepare,
    select_examples,
    take_fewer,
)
from ticketry.tasks.task import Split, Splits


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
def test_hold_out_equals_a_slow_reference(labels: list[int], sizes: list[int]) -> None:
    found = hold_out(np.array(labels), *sizes)
    assert [indices.tolist() for indices in found] == slow_hold_out(labels, *sizes)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), sizes=st.lists(st.integers(0, 9), min_size=8))
def test_hold_out_takes_a_number_for_each_class(labels: list[int], sizes: list[int]) -> None:
    classes = sorted(set(labels))
    numbers = [np.array(sizes[start : start + len(classes)]) for start in (0, 4)]
    found = hold_out(np.array(labels), *numbers)
    for place, label in enumerate(classes):
        expected = slow_hold_out(labels, int(numbers[0][place]), int(numbers[1][place]))
        assert [[i for i in part if labels[i] == label] for part in found] == [
            [i for i in part if labels[i] == label] for part in expected
        ]


@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=5), share=st.fractions(0.01, 0.99))
def test_a_share_of_each_class(counts: list[int], share: Fraction) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    for found, count in zip(count_share_of_each(labels, share).tolist(), counts, strict=True):
        assert 1 <= found < count
        exact = share * count
        assert abs(found - exact) <= Fraction(1, 2) or found in (1, count - 1)
    assert count_share_of_each(np.zeros(25, np.int64), Fraction("0.1")).tolist() == [3]  # 2.5, rounded up


def test_hold_out_keeps_its_bits() -> None:
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
    split = select_examples(images, np.array([5, 4, 3, 2, 1, 0], np.uint8), np.array([1, 4]))
    assert split.inputs.tolist() == images[[1, 4]].tolist()
    assert split.targets.tolist() == [4, 1]
    assert str(split.targets.dtype) == "torch.int64"
    images[1] = 0
    assert split.inputs[0].tolist() == [[[4, 5], [6, 7]]]


def test_fewer_takes_as_many_of_each_class() -> None:
    labels = torch.arange(600) % 3
    split = Split(torch.arange(600), labels)
    few = take_fewer(split, 30)
    assert few.targets.bincount().tolist() == [10, 10, 10]
    assert torch.equal(few.inputs % 3, few.targets)  # inputs and targets still belong together
    assert set(few.inputs.tolist()) < set(take_fewer(split, 300).inputs.tolist())  # more data keep what there was
    for count in (31, 0, 603, -3):
        with pytest.raises(TaskError, match="multiple of 3, the number of classes, up to 600"):
            take_fewer(split, count)


# -- averaged images --------------------------------------------------------------------------------------------------


@given(factor=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 1000))
def test_each_pixel_is_the_rounded_mean_of_its_square(factor: int, rows: int, columns: int, seed: int) -> None:
    shape = (2, 3, rows * factor, columns * factor)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = average_pixels(images, factor)
    assert found.shape == (2, 3, rows, columns)
    assert found.dtype == torch.uint8
    for i in range(rows):
        for j in range(columns):
            square = images[:, :, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].reshape(2, 3, -1)
            for n in range(2):
                for c in range(3):
                    mean = Fraction(sum(square[n, c].tolist()), factor * factor)
                    assert int(found[n, c, i, j]) == math.floor(mean + Fraction(1, 2))


def test_all_three_splits_of_a_data_set_are_averaged_and_their_classes_are_left_alone() -> None:
    whole, small = data.load("digits", train=300), data.load("digits", train=300, factor=2)
    for part in ("train", "validation", "test"):
        before, after = getattr(whole, part), getattr(small, part)
        assert after.inputs.shape == (len(before), 1, 4, 4)
        assert torch.equal(after.targets, before.targets)
        assert torch.equal(after.inputs, average_pixels(before.inputs, 2))


# -- prepared copies --------------------------------------------------------------------------------------------------


def some_splits() -> Splits:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 1, 3, 3), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, 10, (count,), generator=generator))

    return Splits(train=split(7), validation=split(2), test=split(3))


def same(one: Splits, other: Splits) -> bool:
    return all(
        torch.equal(getattr(getattr(one, part), kind), getattr(getattr(other, part), kind))
        and getattr(getattr(one, part), kind).dtype == getattr(getattr(other, part), kind).dtype
        for part in ("train", "validation", "test")
        for kind in ("inputs", "targets")
    )


class Maker:
    calls = 0

    def __call__(self) -> Splits:
        self.calls += 1
        return some_splits()


def test_a_prepared_copy_is_written_once_and_read(tmp_path: Path) -> None:
    make = Maker()
    assert all(same(load_or_prepare("set-1", folder=tmp_path, make=make), some_splits()) for _ in range(3))
    assert make.calls == 1
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["set-1.safetensors"]
    assert same(load_or_prepare("set-2", folder=tmp_path, make=make), some_splits())
    assert make.calls == 2


def rename_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors["other"] = tensors.pop("test.inputs").clone()
    save_file(tensors, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        rename_tensor,
    ],
    ids=["flipped", "truncated", "empty", "renamed"],
)
def test_a_damaged_copy_is_replaced(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make = Maker()
    load_or_prepare("set-1", folder=tmp_path, make=make)
    damage(tmp_path / "prepared" / "set-1.safetensors")
    for _ in range(2):
        assert same(load_or_prepare("set-1", folder=tmp_path, make=make), some_splits())
        assert make.calls == 2


def test_a_folder_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    make = Maker()
    for calls in (1, 2):
        assert same(load_or_prepare("set-1", folder=tmp_path / "file", make=make), some_splits())
        assert make.calls == calls
