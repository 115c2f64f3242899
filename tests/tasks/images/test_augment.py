"""The vectorised augmentations against an obvious loop over images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ticketry.tasks import images

Change = Callable[[Tensor, torch.Generator], Tensor]
shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


def random_images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def slow_flip(batch: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.randint(0, 2, (len(batch), 1), generator=generator)
    out = []
    for image, yes in zip(batch, mirrored.flatten().tolist(), strict=True):
        out.append(image.flip(-1) if yes else image)
    return torch.stack(out)


def slow_crop(batch: Tensor, generator: torch.Generator) -> Tensor:
    corners = torch.randint(0, 9, (len(batch), 2), generator=generator).tolist()
    out = torch.zeros_like(batch)
    _, _, height, width = batch.shape
    for index, (top, left) in enumerate(corners):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + top - 4, x + left - 4
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[index, :, y, x] = batch[index, :, from_y, from_x]
    return out


@pytest.mark.parametrize(("change", "slow"), [(images.flip, slow_flip), (images.crop, slow_crop)])
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_augmentations_equal_a_loop(change: Change, slow: Change, shape: tuple[int, ...], seed: int) -> None:
    batch = random_images(shape, seed)
    before, state = batch.clone(), torch.get_rng_state()
    one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
    found = change(batch, one)
    assert torch.equal(found, slow(batch, other))
    assert found.dtype == torch.uint8
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state), "only the generator is drawn from"


def test_flip_is_a_fair_coin() -> None:
    batch = random_images((4000, 1, 1, 2))
    batch[..., 0], batch[..., 1] = 0, 1
    share = images.flip(batch, torch.Generator().manual_seed(0))[..., 0].float().mean()
    assert abs(share - 0.5) < 4 * 0.5 / 4000**0.5


def test_crop_draws_every_shift_alike() -> None:
    count = 81 * 200
    batch = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    batch[:, :, 4, 4] = 1  # the centre stays inside whatever the shift
    moved = images.crop(batch, torch.Generator().manual_seed(0)).view(count, 81)
    assert torch.equal(moved.sum(1), torch.ones(count, dtype=torch.int64))
    seen = torch.bincount(moved.argmax(1), minlength=81).double()
    chi_squared = float(((seen - 200) ** 2 / 200).sum())
    assert chi_squared < 80 + 5 * (2 * 80) ** 0.5
