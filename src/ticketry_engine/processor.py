"""The processor: its name and features as the system tells them, and its caches."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
"""Bytes of the last cache, where the system does not tell."""
_USUAL_FIRST = (32 * 2**10, 2**20)
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Features that multiply in bfloat16."""
_NAMED = (
    ("vendor_id", "cpu family", "model", "stepping"),  # x86
    ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),  # Arm
)
"""What a kind is named by, in the system's words."""
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", *BF16, "amx_tile", "asimd", "sve")
"""Features by which libraries choose kernels; a virtual machine may hide them."""


def processor() -> tuple[str, set[str]]:
    """Its name, and its features in Linux' words."""
    facts = _facts()
    return facts.get("model name") or platform.processor() or platform.machine(), _features(facts)


def kind() -> str:
    """Maker, family, model and stepping in numbers, and features on which kernels depend.

    Names do not tell processors apart: rented machines call all generations "AMD EPYC" or "Intel Xeon Processor".
    """
    return kind_of(_facts())


def kind_of(facts: Mapping[str, str]) -> str:
    """The same of what Linux tells of a processor, by its words."""
    numbers = next((found for names in _NAMED if (found := [facts[name] for name in names if name in facts])), [])
    features = _features(facts)
    return " ".join([*(numbers or [platform.machine()]), *(one for one in _TELLING if one in features)])


def facts_of(cpuinfo: str) -> dict[str, str]:
    """What the text of /proc/cpuinfo tells of the first processor, by its words."""
    first, _, _ = cpuinfo.strip().partition("\n\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _features(facts: Mapping[str, str]) -> set[str]:
    return set((facts.get("flags") or facts.get("Features") or "").split())


@functools.cache  # it is asked for with every result
def _facts() -> Mapping[str, str]:
    """What Linux tells; elsewhere nothing."""
    try:
        return facts_of(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return {}


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
