"""The processor: its name, features and caches, and which platforms kernels run on."""

from __future__ import annotations

import ctypes
import functools
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
"""Bytes of the last-level cache if the system does not report them."""
_USUAL_FIRST = (32 * 2**10, 2**20)
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Features that multiply in bfloat16."""
_NAMED = (
    ("vendor_id", "cpu family", "model", "stepping"),  # x86
    ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),  # Arm
)
"""Keys that identify a processor model, as Linux names them."""
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", *BF16, "amx_tile", "asimd", "sve")
"""Features by which libraries choose kernels; a virtual machine may hide some."""


def processor() -> tuple[str, set[str]]:
    """Return the processor's name, and its features as Linux names them."""
    facts = _first_processor_facts()
    return facts.get("model name") or platform.processor() or platform.machine(), _kernel_features(facts)


def kind() -> str:
    """Return vendor, family, model, stepping and the features that kernels depend on.

    Names do not identify processors: cloud machines call all generations "AMD EPYC" or "Intel Xeon Processor".
    """
    return kind_of(_first_processor_facts())


def kind_of(facts: Mapping[str, str]) -> str:
    """Return `kind` for a processor whose entries in /proc/cpuinfo are given."""
    numbers = next((found for names in _NAMED if (found := [facts[name] for name in names if name in facts])), [])
    features = _kernel_features(facts)
    return " ".join([*(numbers or [platform.machine()]), *(one for one in _TELLING if one in features)])


def facts_of(cpuinfo: str) -> dict[str, str]:
    """Return the entries of the first processor in the text of /proc/cpuinfo."""
    first, _, _ = cpuinfo.strip().partition("\n\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _kernel_features(facts: Mapping[str, str]) -> set[str]:
    return set((facts.get("flags") or facts.get("Features") or "").split())


@functools.cache  # it is asked for with every result
def _first_processor_facts() -> Mapping[str, str]:
    """Return Linux's description of the processor; empty on other systems."""
    try:
        return facts_of(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return {}


def computes_in_bf16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16."""
    return not processor()[1].isdisjoint(BF16)


def last_cache() -> int:
    """Return the bytes of core 0's last-level cache; 32 MB if the system does not report them."""
    sizes = [_read_bytes(file) for file in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max(sizes, default=0) or _USUAL_CACHE


def cache_sizes() -> tuple[int, int, int]:
    """Return the bytes of core 0's L1 data cache, L2 cache and last-level cache; common sizes if the system reports
    none."""
    found = dict(zip((1, 2), _USUAL_FIRST, strict=True))
    for one in _CACHES.glob("index*") if _CACHES.is_dir() else ():
        try:
            level, kind = int((one / "level").read_text()), (one / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in found and (size := _read_bytes(one / "size")):
            found[level] = size
    return found[1], found[2], last_cache()


def _read_bytes(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0


# -- platforms ---------------------------------------------------------------------------------------------------------


KERNEL_PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
"""Processors that the engine has kernels for, with the names that systems give them, in lower case."""


def no_kernels(system: str | None = None, processor: str | None = None) -> str:
    """Return why no kernels run on this system's processor; empty if they do.

    Args:
        system, processor: as `platform.system` and `platform.machine` say; by default those of this machine.
    """
    system, processor = system or platform.system(), processor or platform.machine()
    if system == "Windows":
        return "kernels for the processor need a system of the POSIX family (threads wait by sched_yield)"
    if processor.lower() not in KERNEL_PROCESSORS:
        return f"kernels are written for x86-64 and 64-bit Arm processors, and this one is {processor}"
    return ""


_PERMISSION, _TILE_DATA = 0x1023, 18
"""Linux: number of the request for permission to use a part of the processor's state, and number of AMX's tile data."""


def may_use_tiles() -> bool:
    """Return whether this process may use AMX tiles; requests permission from Linux, once for all its threads."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    arch_prctl = 158
    return int(ctypes.CDLL(None).syscall(arch_prctl, _PERMISSION, _TILE_DATA)) == 0


def missing(system: str | None = None, processor: str | None = None) -> list[str]:
    """Return sentences that say what does not run on this system; empty on Linux and macOS with an x86-64 or Arm
    processor.

    Args:
        system, processor: see `no_kernels`.
    """
    found = []
    if why := no_kernels(system, processor):
        found.append(f"tk.compile, tk.sparse_training, ticketry compile and bench, and --kernels auto|sparse: {why}")
    if (system or platform.system()) == "Windows":
        found.append("--on slurm: Slurm has no Windows")
    return found


def warn() -> None:
    """Warn once of everything that does not run on this system."""
    if found := missing():
        warnings.warn(
            f"what of ticketry does not run on this machine: {'; '.join(found)}", RuntimeWarning, stacklevel=3
        )
