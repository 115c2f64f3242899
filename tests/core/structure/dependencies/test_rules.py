"""Single operations: what flows through them comes out equal, and what must stay stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from halving import check, example, groups_of, without

Operation = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A convolution of 12 channels, an operation, a rectifier and another convolution; a head of the mean."""

    def __init__(self, operation: Operation, channels: int) -> None:
        super().__init__()
        self.a, self.operation = nn.Conv2d(3, 12, 3, padding=1), operation
        self.b, self.fc = nn.Conv2d(channels, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.operation(self.a(x))))).mean((2, 3)))


def _windows(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])


def _folded(x: Tensor) -> Tensor:
    return F.fold(x.flatten(2)[:, :, :4], (4, 4), 2, stride=2)


FREE: dict[str, tuple[Operation, int]] = {
    "roll of pixels": (lambda x: x.roll((1, 2), (2, 3)), 12),
    "sort of pixels": (lambda x: x.sort(-1).values, 12),
    "largest of pixels": (lambda x: x.topk(2, -1).values, 12),
    "sum so far": (lambda x: x.cumsum(-1), 12),
    "triangle": (lambda x: x.tril(), 12),
    "windows": (_windows, 12 * 9),
    "windows of a row": (lambda x: x.unfold(3, 2, 2).mean(-1), 12),
    "folded": (_folded, 3),
    "pixels by index": (lambda x: x[:, :, torch.tensor([3, 0, 1])], 12),
    "pixels by indices": (lambda x: x[:, :, torch.tensor([[3], [0]]), torch.tensor([1, 2])], 12),
    "pixels by mask": (lambda x: x[..., torch.tensor([True, False] * 4)], 12),
    "normalised over channels": (lambda x: F.normalize(x, dim=1), 12),
    "normalised by absolute values": (lambda x: F.normalize(x, p=1.0, dim=1), 12),
    "normalised over pixels": (lambda x: F.normalize(x.flatten(2), dim=2).view_as(x), 12),
    "length of channels": (lambda x: x / torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True).clamp(min=1e-3), 12),
    "resized smoothly": (lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), 12),
    "resized by nearest": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), 12),
    "shuffled": (lambda x: F.channel_shuffle(x, 3), 12),
    "local attention": (
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3, scale=0.2).mT.unflatten(
            2, (8, 8)
        ),
        12,
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_pass(name: str) -> None:
    torch.manual_seed(0)
    model, x = Between(*FREE[name]), example(2, 3, 8, 8)
    groups = groups_of(model, x)
    assert groups["a"].prunable, groups["a"].reason
    small = check(model, x, without(model, groups.values()))
    assert small.a.out_channels < 12


STAYING: dict[str, tuple[Operation, int, str]] = {
    "roll of channels": (lambda x: x.roll(1, 1), 12, "rolled"),
    "roll of all": (lambda x: x.roll(1), 12, "rolled"),
    "sort of channels": (lambda x: x.sort(1).values, 12, "aten.sort.default runs over it"),
    "sum of channels so far": (lambda x: x.cumsum(1), 12, "aten.cumsum.default runs over it"),
    "channels by index": (lambda x: x[:, torch.tensor([3, 0])], 2, "indices of it are picked"),
    "channels by mask": (lambda x: x[:, torch.arange(12) % 2 == 0], 6, "indices of it are picked"),
    "windows of channels": (lambda x: x.unfold(1, 2, 2).mean(-1), 6, "cut into windows"),
    "attention scaled by width": (
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT[:, None].contiguous()] * 3)[:, 0].mT.unflatten(
            2, (8, 8)
        ),
        12,
        "attention scales its scores by the width",
    ),
    "attention of one head, written out by torch": (
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT] * 3).mT.unflatten(2, (8, 8)),
        12,
        "scales its scores by the width",
    ),
    "number of positive channels": (
        lambda x: x / (1 + torch.linalg.vector_norm(x, ord=0, dim=1, keepdim=True)),
        12,
        "reduces it",
    ),
    "root mean square": (
        lambda x: F.rms_norm(x.mT, (8,)).flatten(1, 2).unflatten(1, (12, 8)) + x.mean(1, keepdim=True),
        12,
        "reduces it",
    ),
    "unequal": (lambda x: torch.cat(x.split([5, 7], 1), 1), 12, "unequal parts"),
}


@pytest.mark.parametrize("name", STAYING)
def test_channels_stay(name: str) -> None:
    torch.manual_seed(0)
    operation, channels, why = STAYING[name]
    model, x = Between(operation, channels), example(2, 3, 8, 8)
    groups = groups_of(model, x)
    assert why in groups["a"].reason
    assert groups["b"].prunable
    check(model, x, without(model, groups.values()))


def test_members_compare_as_data() -> None:
    model, x = Between(lambda x: x, 12), example(2, 3, 8, 8)
    one, other = tk.structure.channel_groups(model, x), tk.structure.channel_groups(model, x)
    assert one == other
    assert one[0].members[0] != one[1].members[0]
    assert len({member for group in (*one, *other) for member in group.members}) == sum(len(g.members) for g in one)
    assert one[0].members[0].indices[2] == tuple(one[0].members[0].array[2].tolist())
