"""Channels of public networks: how long it takes to follow them, what can go, and how exact the smaller model is.

The networks are those of the tests, of torchvision, timm, transformers and torch, untrained, on two small images each;
those whose library is not installed are left out. Half of the channels of every group that can lose any are removed.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from common import HERE, Row, main, one_thread, parser, timed
from torch import nn

import ticketry as tk

sys.path[:1] = [str(HERE.parent / "tests")]  # not this folder
import pytest  # noqa: E402

from halving import difference, without  # noqa: E402
from public_models import NAMES, build, inputs, settled  # noqa: E402

QUICK = ("torchvision:resnet18", "u-net", "encoder")

EXACT = 1e-5
"""Largest difference to the masked model's outputs in float64, relative to the largest of them."""

RESNET_50 = 1.5
"""Seconds to follow it on one core."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    names = arguments.only or (QUICK if arguments.quick else NAMES)
    tk.structure.channel_groups(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(2, 3))  # imports, once
    return [row for name in names if (row := _row(name, 1 if arguments.quick else 3)) is not None]


def _row(name: str, repeats: int) -> Row | None:
    try:
        model, x = settled(build(name)), inputs(name)
    except pytest.skip.Exception as reason:
        print(f"{name} is left out: {reason}", file=sys.stderr)
        return None
    found: list[tuple[tk.structure.ChannelGroup, ...]] = []
    seconds = [timed(lambda: found.append(tk.structure.channel_groups(model, x))) for _ in range(repeats)]
    groups = [group for group in found[0] if group.prunable]
    mask, all_gone = without(model, groups), without(model, groups, step=1)
    small = tk.shrink(model, mask, x)
    total = sum(parameter.numel() for parameter in model.parameters())
    left = sum(parameter.numel() for parameter in small.parameters())
    apart = difference(model, small, mask, x)
    if apart > EXACT:
        raise SystemExit(f"{name}: the smaller model's outputs differ by {apart:.2g}")
    can_go = 1 - all_gone.kept / total
    return Row(
        name,
        statistics.median(seconds),
        "s",
        target=RESNET_50 if name == "torchvision:resnet50" else None,
        how=(
            f"{total / 1e6:.1f} M; {len(groups)} of {len(found[0])} groups can go, with {can_go:.0%} of the parameters;"
            f" at half of their channels {left / total:.0%} are left, difference {apart:.0e}"
        ),
        details={
            "parameters": total,
            "groups": len(found[0]),
            "groups_that_can_go": len(groups),
            "share_of_parameters_that_can_go": can_go,
            "share_left_at_half": left / total,
            "difference": apart,
            "seconds": seconds,
            "stays": {group.name: group.reason for group in found[0] if not group.prunable},
        },
    )


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="*", help="names of networks, as in the tests")
    main("structure_models", measure, options)
