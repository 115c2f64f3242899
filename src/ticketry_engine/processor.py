"""Describes the processor (name, features and caches), and lists the platforms on which kernels run."""

from __future__ import annotations

import ctypes
import functools
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20
"""Bytes assumed for the last-level cache if the system does not report them."""
_USUAL_FIRST = (32 * 2**10, 2**20)
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Processor features, as Linux names them, that multiply bfloat16."""
_NAMED = (
    ("vendor_id", "cpu family", "model", "stepping"),  # x86
    ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),  # Arm
)
"""Keys in /proc/cpuinfo that identify a processor model, on x86 and on Arm."""
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", *BF16, "amx_tile", "asimd", "sve")
"""Processor features by which libraries choose kernels; a virtual machine may hide some of them."""


def name_and_features() -> tuple[str, set[str]]:
    """Return (name of the processor, set of its features as Linux names them)."""
    facts = _first_processor_facts()
    return facts.get("model name") or platform.processor() or platform.machine(), _kernel_features(facts)


def processor_kind() -> str:
    """Return a string that distinguishes processor models that report the same name, such as "AMD EPYC"."""
    return kind_from_cpuinfo(_first_processor_facts())


def kind_from_cpuinfo(facts: Mapping[str, str]) -> str:
    """Return a text that identifies a kind of processor; `facts` are its entries in /proc/cpuinfo."""
    numbers = next((found for names in _NAMED if (found := [facts[name] for name in names if name in facts])), [])
    features = _kernel_features(facts)
    return " ".join([*(numbers or [platform.machine()]), *(one for one in _TELLING if one in features)])


def parse_cpuinfo(cpuinfo: str) -> dict[str, str]:
    """Return the entries of the first processor in `cpuinfo`, the text of /proc/cpuinfo."""
    first, _, _ = cpuinfo.strip().partition("\n\n")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _kernel_features(facts: Mapping[str, str]) -> set[str]:
    return set((facts.get("flags") or facts.get("Features") or "").split())


@functools.cache  # it is asked for with every result
def _first_processor_facts() -> Mapping[str, str]:
    """Return the entries of the first processor in /proc/cpuinfo; {} on systems other than Linux."""
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return {}


def computes_in_bf16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16."""
    return not name_and_features()[1].isdisjoint(BF16)


def last_level_cache_bytes() -> int:
    """Return the size of core 0's last-level cache in bytes; 32 MB if the system does not report the size."""
    sizes = [_read_size_in_bytes(file) for file in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max(sizes, default=0) or _USUAL_CACHE


def cache_bytes() -> tuple[int, int, int]:
    """Return the bytes of core 0's (L1 data, L2, last-level) caches, with common sizes where the size is unknown."""
    found = dict(zip((1, 2), _USUAL_FIRST, strict=True))
    for one in _CACHES.glob("index*") if _CACHES.is_dir() else ():
        try:
            level, kind = int((one / "level").read_text()), (one / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in found and (size := _read_size_in_bytes(one / "size")):
            found[level] = size
    return found[1], found[2], last_level_cache_bytes()


def _read_size_in_bytes(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0


# -- platforms ---------------------------------------------------------------------------------------------------------


KERNEL_PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
"""Names, in lower case, that systems give to the processors for which the engine has kernels."""


def why_kernels_do_not_run(system: str | None = None, processor: str | None = None) -> str:
    """Return the reason why kernels do not run on a system; "" if kernels run.

    Args:
        system, processor: results of `platform.system` and `platform.machine` on the system; by default, this machine.
    """
    system, processor = system or platform.system(), processor or platform.machine()
    if system == "Windows":
        return "kernels for the processor need a system of the POSIX family (threads wait by sched_yield)"
    if processor.lower() not in KERNEL_PROCESSORS:
        return f"kernels are written for x86-64 and 64-bit Arm processors, and this one is {processor}"
    return ""


_PERMISSION, _TILE_DATA = 0x1023, 18
"""Linux numbers: the request for permission to use a part of the processor's state, and the part for AMX tiles."""


def request_amx_tiles() -> bool:
    """Request permission from Linux to use AMX tiles in all threads of this process; return whether it is granted."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    arch_prctl = 158
    return int(ctypes.CDLL(None).syscall(arch_prctl, _PERMISSION, _TILE_DATA)) == 0


def list_unsupported(system: str | None = None, processor: str | None = None) -> list[str]:
    """Return texts that say what does not run on a system; [] for Linux and macOS with an x86-64 or Arm processor.

    Args:
        system, processor: results of `platform.system` and `platform.machine` on the system; by default, this machine.
    """
    found = []
    if why := why_kernels_do_not_run(system, processor):
        found.append(f"tk.compile, tk.sparse_training, ticketry compile and bench, and --kernels auto|sparse: {why}")
    if (system or platform.system()) == "Windows":
        found.append("--on slurm: Slurm has no Windows")
    return found


def warn_of_unsupported() -> None:
    """Issue one warning that lists everything that does not run on this machine."""
    if found := list_unsupported():
        warnings.warn(
            f"what of ticketry does not run on this machine: {'; '.join(found)}", RuntimeWarning, stacklevel=3
        )
