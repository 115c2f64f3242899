"""Time saved with a fifth of the weights on several networks: for `engine_timm.py` and `engine_decoders.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from common import Row
from engine_networks import SEED

from engine import QUICK_ROUNDS, Setting, setting_rows
from ticketry_engine.bench.timing import Timing

PATTERNS = ("unstructured", "groups:4:any", "groups:32")


def fifths(
    arguments: argparse.Namespace, networks: Sequence[str], batches: Sequence[int], saved: float | None = None
) -> list[Row]:
    """Rows of networks, or of those that --only names, each with so many images.

    Args:
        saved: per cent of time to save.
    """
    torch.set_num_threads(arguments.threads)
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    timing = Timing(rounds=rounds, cold=arguments.cold, clock=arguments.clock, seed=SEED)
    if unknown := set(arguments.only) - set(networks):
        sys.exit(f"no network is called {', '.join(sorted(unknown))}: {', '.join(networks)}")
    asked, arguments.patterns = arguments.patterns or PATTERNS, []
    rows = []
    for name in arguments.only or networks:
        for batch in batches:
            rows += setting_rows(Setting(name, batch, {(pattern, 0.2): saved for pattern in asked}), arguments, timing)
    return rows
