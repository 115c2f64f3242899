"""Time saved by the engine on networks of depthwise convolutions and attention, against the fastest dense engine.

    python benchmarks/engine_timm.py --only vit-tiny --against eager openvino onnxruntime

MobileNetV3, EfficientNet-B0, ConvNeXt-atto and ViT-tiny of timm, untrained, batch 8, 224 x 224 pixels, with a fifth
of the weights of every prunable layer and without a mask; measured as in `engine.py`. It takes timm and torchvision.
"""

from __future__ import annotations

import argparse

from common import Row, main
from engine_fifths import fifths

from engine import options

SAVED = 50.0
"""Per cent of time to save with a fifth of the weights."""

NETWORKS = ("mobilenetv3", "efficientnet-b0", "convnext-atto", "vit-tiny")


def measure(arguments: argparse.Namespace) -> list[Row]:
    return fifths(arguments, NETWORKS, [8], SAVED)


if __name__ == "__main__":
    main("engine_timm", measure, options())
