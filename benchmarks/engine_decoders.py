"""What the engine saves on networks that make images, against the fastest dense engine.

    python benchmarks/engine_decoders.py --only unet --against eager openvino onnxruntime

U-Nets whose way up is by transposed convolutions or by bilinear interpolation, 128 x 128 pixels, and DCGAN's generator,
untrained, at 8 images and one, with a fifth of the weights of every prunable layer and without a mask; measured as in
`engine.py`.
"""

from __future__ import annotations

import argparse
import sys

import torch
from common import Row, main
from engine_networks import SEED

from engine import QUICK_ROUNDS, Setting, options, setting_rows
from ticketry.engine.bench.timing import Timing

PATTERNS = ("unstructured", "groups:4:any", "groups:32")
NETWORKS = ("unet", "unet-bilinear", "dcgan")


def measure(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(arguments.threads)
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    timing = Timing(rounds=rounds, cold=arguments.cold, clock=arguments.clock, seed=SEED)
    if unknown := set(arguments.only) - set(NETWORKS):
        sys.exit(f"no network is called {', '.join(sorted(unknown))}: {', '.join(NETWORKS)}")
    asked, arguments.patterns = arguments.patterns or PATTERNS, []
    rows = []
    for name in arguments.only or NETWORKS:
        for batch in (8, 1):
            rows += setting_rows(Setting(name, batch, {(pattern, 0.2): None for pattern in asked}), arguments, timing)
    return rows


if __name__ == "__main__":
    main("engine_decoders", measure, options())
