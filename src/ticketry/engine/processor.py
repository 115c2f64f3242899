"""The processor: its name and features as the system tells them, and its caches."""

from __future__ import annotations

import platform
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
"""Bytes of the last cache, where the system does not tell."""
_USUAL_FIRST = (32 * 2**10, 2**20)
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Features that multiply in bfloat16."""


def processor() -> tuple[str, set[str]]:
    """Its name, and its features in Linux' words."""
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


def computes_in_bf16() -> bool:
    """Whether the processor has instructions that multiply in bfloat16."""
    return not processor()[1].isdisjoint(BF16)


def last_cache() -> int:
    """Bytes of the last cache that core 0 has; 32 MB where the system does not tell."""
    sizes = [_bytes(file) for file in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max(sizes, default=0) or _USUAL_CACHE


def cache_sizes() -> tuple[int, int, int]:
    """Bytes of the first cache for data, of the second, and of the last one of core 0; usual ones where not told."""
    found = dict(zip((1, 2), _USUAL_FIRST, strict=True))
    for one in _CACHES.glob("index*") if _CACHES.is_dir() else ():
        try:
            level, kind = int((one / "level").read_text()), (one / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in found and (size := _bytes(one / "size")):
            found[level] = size
    return found[1], found[2], last_cache()


def _bytes(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0
