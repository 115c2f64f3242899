"""Whether this machine has the devices that are asked for."""

from __future__ import annotations

import os

import torch

from ticketry.errors import UsageError


def check_machine(devices: int, threads: int, workers: int, device: str) -> None:
    """
    Args:
        devices: that train one network together.
        threads: of each, on a CPU.
        workers: networks that train at once.
        device: cpu, cuda or auto.

    Raises:
        UsageError: if this machine has fewer cores, or GPUs.
    """
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if gpus:
        if devices > gpus:
            raise UsageError(
                f"--devices {devices} asks for as many GPUs, and this machine has {gpus}: choose fewer, or --device cpu"
            )
        return
    cores = os.cpu_count() or 1
    each = devices * threads
    if each > cores:
        raise UsageError(
            f"--devices {devices} with {threads} thread{'s' if threads > 1 else ''} each compute on {each} cores, and"
            f" this machine has {cores}: choose fewer"
        )
    if each * workers > cores:
        raise UsageError(
            f"{workers} networks at once, each on {devices} devices of {threads} thread{'s' if threads > 1 else ''},"
            f" compute on {each * workers} cores, and this machine has {cores}, where they would wait for one another"
            f" at every step. Choose --workers {max(cores // each, 1)}"
        )
