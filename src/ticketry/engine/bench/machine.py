"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ticketry.engine.bench import cores

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
"""Bytes of the last cache, where the system does not tell."""
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_FEATURES = ("avx2", "avx512f", *_BF16, "asimd", "sve")


def machine(packages: Iterable[str] = ("torch", "ticketry")) -> dict[str, Any]:
    """Processor, features that matter here, caches, system, load and versions, as JSON values."""
    name, flags = _processor()
    return {
        "processor": name,
        "features": [feature for feature in _FEATURES if feature in flags],
        "cores": len(cores.available()),
        "last_cache_bytes": last_cache(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: found for package in packages if (found := _version(package))},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def computes_in_bf16() -> bool:
    """Whether the processor has instructions that multiply in bfloat16."""
    return not _processor()[1].isdisjoint(_BF16)


def last_cache() -> int:
    """Bytes of the last cache that core 0 has; 32 MB where the system does not tell."""
    sizes = [_bytes(file) for file in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max(sizes, default=0) or _USUAL_CACHE


def _bytes(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0


def _processor() -> tuple[str, set[str]]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    return name, flags


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
