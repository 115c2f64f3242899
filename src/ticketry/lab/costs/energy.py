"""Measure energy with the meters of processors (RAPL) and GPUs (NVML).

On a machine without a meter, energy is "not measured". On request, codecarbon then estimates the energy from a table of
typical powers; the result is labelled as an estimate.
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
    """Holds the energy that was used between two readings of the meters."""

    kwh: float
    """Energy in kWh."""
    by: str
    """Names of the meters and what they count, or the source of the estimate."""


class Energies(Protocol):
    """Measures or estimates the energy that is used after the creation of this object."""

    def used(self) -> Energy | None:
        """Return the energy used since this object was created; None if it is unknown."""


class EnergyMeter:
    """Measures energy with the machine's meters, which are read at creation and at each call of `used`."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """Read the meters for the first time.

        Args:
            powercap: folder in which the kernel shows the RAPL meters of processors. Only the meters of whole
                processors (``intel-rapl:0``) are read, since they include those of their parts (``intel-rapl:0:0``).
        """
        self._domains = sorted(
            path for path in _list_folder(powercap) if path.name.count(":") == 1 and path.name.startswith("intel-rapl")
        )
        self._processors = self._read_processors()
        self._gpus = _read_gpus()

    @property
    def readable(self) -> bool:
        """Whether the machine has at least one meter that this process may read."""
        return self._processors is not None or self._gpus is not None

    def used(self) -> Energy | None:
        """Return the energy that the whole machine used since creation; None if no meter can be read."""
        joules, meters = 0.0, []
        now = self._read_processors()
        if self._processors is not None and now is not None:
            meters.append("RAPL (whole processors)")
            for domain, before in self._processors.items():
                spent = now[domain] - before
                joules += (spent if spent >= 0 else spent + _read_number(domain / "max_energy_range_uj", 0)) / 1e6
        gpus = _read_gpus()
        if self._gpus is not None and gpus is not None:
            meters.append("NVML (all GPUs)")
            joules += (gpus - self._gpus) / 1e3
        if not meters:
            return None
        return Energy(joules / _JOULES_PER_KWH, f"{' and '.join(meters)}, other work on the machine included")

    def _read_processors(self) -> dict[Path, float] | None:
        """Return the microjoules of each processor; None if there are no meters, or if only root may read them."""
        try:
            found = {domain: float((domain / "energy_uj").read_text()) for domain in self._domains}
        except (OSError, ValueError):
            return None
        return found or None


class EnergyEstimate:
    """Estimates the energy of the whole machine with codecarbon, from creation to the first call of `used`.

    The estimate is for machines without a meter, and needs the extra ``energy``. codecarbon writes no files and sends
    nothing. It must be given a country, but this affects only emissions, which are not reported.

    Raises:
        MissingExtraError: if codecarbon is not installed.
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
        """Return the estimated energy; None if codecarbon gives no number."""
        self._tracker.stop()
        data = getattr(self._tracker, "final_emissions_data", None)
        kwh = getattr(data, "energy_consumed", None)
        if kwh is None:
            return None
        return Energy(float(kwh), "an estimate: codecarbon's model of typical powers, no meter")


def open_energy_meter(kind: str = "meter", powercap: Path = POWERCAP) -> Energies:
    """Return an object that measures energy from now on.

    Args:
        kind: ``meter``; or ``estimate``, to use codecarbon's estimate if the machine has no meter.
        powercap: folder in which the kernel shows the meters of processors.

    Raises:
        UsageError: for another `kind`.
        MissingExtraError: if an estimate is needed and codecarbon is not installed.
    """
    if kind not in ("meter", "estimate"):
        raise UsageError(f"energy must be meter or estimate, got {kind!r}")
    meter = EnergyMeter(powercap)
    return EnergyEstimate() if kind == "estimate" and not meter.readable else meter


def _list_folder(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _read_number(path: Path, otherwise: float) -> float:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return otherwise


def _read_gpus() -> float | None:
    """Return the millijoules of all GPUs since their drivers were loaded; None if NVML (nvidia-ml-py) is missing."""
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
