"""Energy, where the machine counts it: the processors' own meters (RAPL), and the GPUs' (NVML).

Where a machine has no meter, its energy is "not measured". codecarbon reckons there with a table of typical powers: who
asks for that gets it, and it is called an estimate.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ticketry.errors import MissingExtraError, UsageError

POWERCAP = Path("/sys/class/powercap")
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """What was used between two readings."""

    kwh: float
    by: str
    """By which meters, and what they count; or that it is an estimate, and whose."""


class Energies(Protocol):
    """Tells the energy used since it was made."""

    def used(self) -> Energy | None:
        """None if it is not known."""


class EnergyMeter:
    """Reads the meters when it is made, and again when it is asked."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """Begin.

        Args:
            powercap: the kernel's folder of RAPL domains; only whole packages (``intel-rapl:0``) are read, their parts
                (``intel-rapl:0:0``) are in them.
        """
        self._domains = sorted(
            path for path in _listed(powercap) if path.name.count(":") == 1 and path.name.startswith("intel-rapl")
        )
        self._processors = self._read_processors()
        self._gpus = _read_gpus()

    @property
    def readable(self) -> bool:
        """Whether there is a meter at all."""
        return self._processors is not None or self._gpus is not None

    def used(self) -> Energy | None:
        """Since it was made; None if no meter can be read. Whatever else the machine did meanwhile is counted too."""
        joules, meters = 0.0, []
        now = self._read_processors()
        if self._processors is not None and now is not None:
            meters.append("RAPL (whole processors)")
            for domain, before in self._processors.items():
                spent = now[domain] - before
                joules += (spent if spent >= 0 else spent + _number(domain / "max_energy_range_uj", 0)) / 1e6
        gpus = _read_gpus()
        if self._gpus is not None and gpus is not None:
            meters.append("NVML (all GPUs)")
            joules += (gpus - self._gpus) / 1e3
        if not meters:
            return None
        return Energy(joules / _JOULES_PER_KWH, f"{' and '.join(meters)}, other work on the machine included")

    def _read_processors(self) -> dict[Path, float] | None:
        """Microjoules of each package; None if there is none, or it may not be read (on Linux only root may)."""
        try:
            found = {domain: float((domain / "energy_uj").read_text()) for domain in self._domains}
        except (OSError, ValueError):
            return None
        return found or None


class EnergyEstimate:
    """codecarbon's model of the whole machine, from when it is made until it is first asked.

    Made on machines that have no meter, for those who want a number anyhow; it is the extra ``energy``. Nothing is
    written or sent. The country decides emissions alone, which are not told here.

    Raises:
        MissingExtraError: without codecarbon.
    """

    def __init__(self) -> None:
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            raise MissingExtraError("codecarbon", "energy", "estimating energy") from None
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", tracking_mode="machine"
        )
        self._tracker.start()

    def used(self) -> Energy | None:
        """None if the model gives no number."""
        self._tracker.stop()
        data = getattr(self._tracker, "final_emissions_data", None)
        kwh = getattr(data, "energy_consumed", None)
        if kwh is None:
            return None
        return Energy(float(kwh), "an estimate: codecarbon's model of typical powers, no meter")


def energies(kind: str = "meter", powercap: Path = POWERCAP) -> Energies:
    """The machine's meters; with ``estimate``, where it has none, the estimate in their place.

    Raises:
        UsageError: for another word.
        MissingExtraError: for an estimate without codecarbon.
    """
    if kind not in ("meter", "estimate"):
        raise UsageError(f"energy is meter or estimate, not {kind!r}")
    meter = EnergyMeter(powercap)
    return EnergyEstimate() if kind == "estimate" and not meter.readable else meter


def _listed(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _number(path: Path, otherwise: float) -> float:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return otherwise


def _read_gpus() -> float | None:
    """Millijoules of all GPUs since their drivers were loaded; None without NVML (the package nvidia-ml-py)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return float(sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)) if handles else None
    except pynvml.NVMLError:
        return None
