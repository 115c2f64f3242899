"""How large a ticket's mask is on the disk: bits of mask.safetensors for each prunable weight."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import Row, main, parser

import ticketry as tk
from ticketry.lab.training.state import initial_state, rebuild_model

TARGET = 1.05
DENSITY = 0.2
NETWORKS = (("resnet-20", "cifar10"), ("vgg-16", "cifar10"), ("lenet-300-100", "fashion-mnist"))


def measure(arguments: argparse.Namespace) -> list[Row]:
    return [row(network, data) for network, data in NETWORKS]


def row(network: str, data: str) -> Row:
    task = tk.task(data, model=network)
    start = initial_state(task, 0)
    mask = tk.prune(rebuild_model(task, start), density=DENSITY, score="random")
    with tempfile.TemporaryDirectory() as folder:
        ticket = tk.Ticket(mask, start, {"method": "random"}).save(Path(folder) / "ticket")
        size = (ticket / "mask.safetensors").stat().st_size
        if tk.Ticket.load(ticket).mask != mask:
            raise SystemExit(f"the mask of {network} is not the same when it is read again")
    return Row(
        f"a ticket's mask, {network}",
        8 * size / mask.total,
        "bits a weight",
        target=TARGET,
        how=f"{size:,} bytes for {mask.total:,} weights",
        details={"bytes": size, "weights": mask.total},
    )


if __name__ == "__main__":
    main("mask_size", measure, parser(__doc__ or ""))
