"""Profiles by name: of processors and of GPUs."""

from __future__ import annotations

from pathlib import Path

from ticketry.engine.cost.machine_profile import MachineProfile, named, names
from ticketry.engine.cost.on_gpu import GPUS, GpuProfile
from ticketry.errors import UsageError


def profile_names() -> list[str]:
    """Of all profiles that come with the package, processors' first."""
    return [*names(), *GPUS]


def profile(name: str | Path) -> MachineProfile | GpuProfile:
    """A profile by the name of one that comes with the package, or of a file that `calibrate` or `save` wrote.

    Those of processors are `MachineProfile`s; that of a GPU ("h100-bf16") is a `GpuProfile`.

    Args:
        name: of a profile, or the path of a file.

    Raises:
        UsageError: no such name.
        CostError: the file is none, or damaged.

    Examples:
        >>> tk.cost.profile("zen4-avx2").about["vectors"]
        'avx2'
    """
    if isinstance(name, Path) or "/" in name or name.endswith(".json"):
        return MachineProfile.load(name)
    if name in GPUS:
        return GPUS[name]
    if name in names():
        return named(name)
    raise UsageError(
        f"there is no profile {name!r}: there are {', '.join(profile_names())}, and files that calibrate wrote"
    )
