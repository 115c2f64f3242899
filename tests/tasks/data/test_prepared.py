from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ticketry.tasks.data.splits import prepared
from ticketry.tasks.task import Split, Splits


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
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Splits:
        self.calls += 1
        return some_splits()


def test_made_once_and_then_read(tmp_path: Path) -> None:
    make = Maker()
    assert all(same(prepared("set-1", folder=tmp_path, make=make), some_splits()) for _ in range(3))
    assert make.calls == 1
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["set-1.safetensors"]
    assert same(prepared("set-2", folder=tmp_path, make=make), some_splits())
    assert make.calls == 2


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def rename_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors["other"] = tensors.pop("test.inputs").clone()
    save_file(tensors, path)


@pytest.mark.parametrize(
    "damage",
    [flip_last_byte, truncate, rename_tensor, lambda path: path.write_bytes(b""), lambda path: save_file({}, path)],
)
def test_a_damaged_copy_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make = Maker()
    prepared("set-1", folder=tmp_path, make=make)
    damage(tmp_path / "prepared" / "set-1.safetensors")
    assert same(prepared("set-1", folder=tmp_path, make=make), some_splits())
    assert make.calls == 2
    assert same(prepared("set-1", folder=tmp_path, make=make), some_splits())
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    make = Maker()
    for calls in (1, 2):
        assert same(prepared("set-1", folder=tmp_path / "file", make=make), some_splits())
        assert make.calls == calls
