"""What the engine saves on networks of depthwise convolutions and attention, against the fastest dense engine.

    python benchmarks/engine_timm.py --only vit-tiny --against eager openvino onnxruntime

MobileNetV3, EfficientNet-B0, ConvNeXt-atto and ViT-tiny of timm, untrained, batch 8, 224 x 224 pixels, with a fifth
of the weights of every prunable layer and without a mask; measured as in `engine.py`. It takes timm and torchvision.
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
SAVED = 50.0
"""Per cent of time to save with a fifth of the weights."""

NETWORKS = ("mobilenetv3", "efficientnet-b0", "convnext-atto", "vit-tiny")


def measure(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(arguments.threads)
    rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds
    timing = Timing(rounds=rounds, cold=arguments.cold, clock=arguments.clock, seed=SEED)
    if unknown := set(arguments.only) - set(NETWORKS):
        sys.exit(f"no network is called {', '.join(sorted(unknown))}: {', '.join(NETWORKS)}")
    asked, arguments.patterns = arguments.patterns or PATTERNS, []
    rows = []
    for name in arguments.only or NETWORKS:
        setting = Setting(name, 8, {(pattern, 0.2): SAVED for pattern in asked})
        rows += setting_rows(setting, arguments, timing)
    return rows


if __name__ == "__main__":
    main("engine_timm", measure, options())
