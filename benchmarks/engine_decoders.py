"""Time saved by the engine on networks that generate images, against the fastest dense engine.

    python benchmarks/engine_decoders.py --only unet --against eager openvino onnxruntime

U-Nets whose way up is by transposed convolutions or by bilinear interpolation, 128 x 128 pixels, and DCGAN's generator,
untrained, at 8 images and one, with a fifth of the weights of every prunable layer and without a mask; measured as in
`engine.py`.
"""

from __future__ import annotations

import argparse

from common import Row, main
from engine_fifths import fifths

from engine import options

NETWORKS = ("unet", "unet-bilinear", "dcgan")


def measure(arguments: argparse.Namespace) -> list[Row]:
    return fifths(arguments, NETWORKS, [8, 1])


if __name__ == "__main__":
    main("engine_decoders", measure, options())
