"""Expansions before depthwise convolutions, some channels at a time: which they are, and the same numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.models import assert_exact, sketch_of
from samples import sample
from ticketry_engine.kernels.target import target
from ticketry_engine.plan import emission, region_programs
from ticketry_engine.plan.emission import Chunk, Emission, choose_chunks, with_chunks
from ticketry_engine.plan.layout_choice import build_arena

LAYOUTS = ["planes", "pixels"]


class Inverted(nn.Module):
    """An inverted residual block, with whatever makes it another."""

    def __init__(
        self, inputs: int = 8, wide: int = 48, outputs: int = 8, kernel: int = 3, stride: int = 1, other: str = ""
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = 3 if other == "large kernel" else 1
        self.expand = nn.Conv2d(inputs, wide, size, padding=size // 2)
        groups = 2 if other == "two groups" else wide
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=groups)
        self.project = nn.Conv2d(wide, outputs, 1)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        between = nn.functional.silu(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(between))
        if self.other == "read twice":
            y = y + between
        return self.project(y) + (x if self.other == "residual" else 0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that values of tests are large, and plans are of this test alone."""
    monkeypatch.setattr(emission, "BYTES", 40 << 10)
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))


def found_in(model: nn.Module, layout: str, mask: tk.Mask | None = None) -> list[Chunk]:
    x = torch.randn(2, 8, 20, 20)
    return list(choose_chunks(sketch_of(model.eval(), x, mask), layout, 2, 16, 4).values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_expansion_before_a_depthwise_convolution(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 channels of 2 * 20 * 20 * 4 bytes are 150 KB: four times 40 KB and less."""
    (one,) = found_in(Inverted(), layout)
    assert one.channels == 16
    assert [len(part) for part in one.parts] == [16, 16, 16]
    (residual,) = found_in(Inverted(other="residual"), layout)
    assert residual.channels == 16
    monkeypatch.setattr(emission, "BYTES", 160 << 10)
    assert not found_in(Inverted(), layout), "a near cache holds it"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["read twice", "large kernel", "two groups"])
def test_others_are_whole(layout: str, other: str) -> None:
    assert not found_in(Inverted(other=other), layout)


def test_over_planes_rows_that_share_their_columns_go_together() -> None:
    model = Inverted()
    kept = {name: torch.ones(shape, dtype=torch.bool) for name, shape in tk.scope(model).shapes.items()}
    for row in range(48):
        kept["expand.weight"][row] = False
        kept["expand.weight"][row, row % 12 % 8] = True  # twelve kinds of rows, or eight of columns
    mask = tk.Mask(kept)
    mask.apply_(model)
    (one,) = found_in(model, "planes", mask)
    assert sorted(one.order.tolist()) == list(range(48))
    columns = [row % 12 % 8 for row in one.order.tolist()]
    assert sum(a != b for a, b in itertools.pairwise(columns)) == 7, "each kind of row is one run"
    (one,) = found_in(model, "pixels", mask)
    assert one.order.tolist() == list(range(48))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_for_some_channels(layout: str) -> None:
    """Of 16 channels in the place of 48; what they are made of is not written over before the last are made."""
    x = torch.randn(2, 8, 20, 20)
    sketch, here = sketch_of(Inverted().eval(), x), target()
    sizes = []
    for found in ({}, choose_chunks(sketch, layout, 2, here.lanes, 4)):
        some = with_chunks(sketch, found)
        sizes.append(Emission(some, build_arena(some, layout, here, 2, 4), here, 2, 1, (), found).bytes)
    assert sizes[1] < sizes[0] - 20 * 20 * 2 * 4 * 16


CASES: dict[str, Callable[[], nn.Module]] = {
    "no wider than its input": lambda: nn.Sequential(nn.Conv2d(8, 40, 3, padding=1), Inverted(40, 40, 40)),
    "channels that fill no vector": lambda: Inverted(8, 52, 8),
    "stride 2, kernel of 5": lambda: Inverted(kernel=5, stride=2),
    "two in a row": lambda: nn.Sequential(Inverted(other="residual"), Inverted(stride=2)),
}


@pytest.mark.parametrize("where", sample(["host", "avx2", "generic"], 1))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", sample(CASES, ["channels that fill no vector", "two in a row"]))
def test_the_same_numbers(case: str, layout: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "avx2" and target().lanes < 8:
        pytest.skip("another processor")
    monkeypatch.setattr(region_programs, "choose_layout", lambda *_: layout)
    model = CASES[case]().eval()
    mask = tk.prune(model, density=0.5, score="random", distribution="uniform")
    mask.apply_(model)
    seen: list[int] = []

    def counted(*given: object) -> dict[int, Chunk]:
        found = choose_chunks(*given)  # type: ignore[arg-type]
        seen.append(len(found))
        return found

    monkeypatch.setattr(region_programs, "choose_chunks", counted)
    for threads, images in ((1, 4), (2, 7)):
        compiled = tk.compile(model, mask, torch.randn(4, 8, 20, 20), threads=threads, target=where)
        assert_exact(compiled, model, torch.randn(images, 8, 20, 20))
    assert any(seen), "nothing went through some channels at a time"


@pytest.mark.skipif(not target().bf16, reason="the processor does not multiply bfloat16")
def test_in_bfloat16() -> None:
    model = Inverted(16, 96, 16).eval()
    x = torch.randn(4, 16, 24, 24)
    compiled = tk.compile(model, None, x, threads=1, precision="bf16")
    with torch.no_grad():
        assert (compiled(x) - model(x)).abs().max() < 0.03 * model(x).abs().max()
