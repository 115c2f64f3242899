"""What results are made with: versions, the system, the processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch

from ticketry.version import __version__


def environment() -> dict[str, Any]:
    """What a result was made with; not part of any key."""
    return {
        "ticketry": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
    }


@functools.cache  # it is asked for by every result and every ticket
def processor() -> str:
    """The name of the CPU, and of the GPU if there is one."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name
