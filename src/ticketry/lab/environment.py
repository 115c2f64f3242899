"""Software versions, operating system and processor with which results were computed."""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch

from ticketry.version import __version__
from ticketry_engine.processor import kind
from ticketry_engine.processor import processor as name_and_features


def describe_machine() -> dict[str, Any]:
    """Return the software versions and the machine for a stored record. Keys of results do not contain them."""
    return {
        "ticketry": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "processor_kind": kind(),
    }


@functools.cache  # every result and every ticket needs it
def processor_name() -> str:
    """Return the name of the CPU, and of the GPU if there is one."""
    name, _ = name_and_features()
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name
