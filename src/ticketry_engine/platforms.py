"""What does not run on a system or a processor: told when the package is imported, not by a crash at the third step."""

from __future__ import annotations

import ctypes
import platform
import warnings

KERNEL_PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
"""Processors that the engine writes kernels for, as systems call them in small letters."""


def no_kernels(system: str | None = None, processor: str | None = None) -> str:
    """Why no kernels run on this system's processor; empty if they do.

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
"""Of Linux: the request for a part of the processor's state that programs have to ask for, and the number of tiles."""


def may_use_tiles() -> bool:
    """Whether this process may use the tiles of AMX, for which Linux has to be asked once; its threads may then too."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    arch_prctl = 158
    return int(ctypes.CDLL(None).syscall(arch_prctl, _PERMISSION, _TILE_DATA)) == 0


def missing(system: str | None = None, processor: str | None = None) -> list[str]:
    """What does not run, a sentence each; empty on Linux and macOS with an x86-64 or Arm processor.

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
    """Say once what does not run here."""
    if found := missing():
        warnings.warn(
            f"what of ticketry does not run on this machine: {'; '.join(found)}", RuntimeWarning, stacklevel=3
        )
