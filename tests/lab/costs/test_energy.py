"""The meters against a made-up /sys/class/powercap, and a made-up NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ticketry.errors import MissingExtraError, UsageError
from ticketry.lab.costs import meters
from ticketry.lab.costs.meters import EnergyEstimate, EnergyMeter, open_energy_meter


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def domain(root: Path, name: str, microjoules: int, largest: int = 10**12) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        domain(tmp_path, name, 1_000_000)
    meter = EnergyMeter(tmp_path)
    domain(tmp_path, "intel-rapl:0", 1_000_000 + 3_600_000_000)  # 3,600 J
    domain(tmp_path, "intel-rapl:1", 1_000_000 + 7_200_000_000)
    domain(tmp_path, "intel-rapl:0:0", 9_999_999_999)
    used = meter.used()
    assert used is not None
    assert used.kwh == pytest.approx(0.003)
    assert "RAPL" in used.by


def test_a_counter_that_has_wrapped_around(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", 990, largest=1000)
    meter = EnergyMeter(tmp_path)
    domain(tmp_path, "intel-rapl:0", 15, largest=1000)
    used = meter.used()
    assert used is not None
    assert used.kwh == pytest.approx(25e-6 / 3.6e6)


def test_no_meter_is_not_measured(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).used() is None
    assert EnergyMeter(tmp_path / "absent").used() is None
    domain(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    assert EnergyMeter(tmp_path).used() is None


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000.0, 2000.0, 3_601_000.0, 5000.0])

    class NVMLError(Exception):
        pass

    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings),
        NVMLError=NVMLError,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter = EnergyMeter(tmp_path)
    used = meter.used()
    assert used is not None
    assert used.kwh == pytest.approx((3600 + 3) / 3.6e6)

    def broken() -> None:
        raise NVMLError

    monkeypatch.setattr(library, "nvmlInit", broken)
    assert EnergyMeter(tmp_path).used() is None


def test_an_estimate_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """codecarbon, made up: by the names of its documented interface."""
    told: dict[str, object] = {}

    class Tracker:
        def __init__(self, **settings: object) -> None:
            told.update(settings)

        def start(self) -> None:
            told["started"] = True

        def stop(self) -> None:
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.25)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    used = EnergyEstimate().used()
    assert used is not None
    assert (used.kwh, used.by.split(":")[0]) == (0.25, "an estimate")
    assert told["started"]
    assert told["save_to_file"] is False
    monkeypatch.setattr(Tracker, "stop", lambda self: None)
    assert EnergyEstimate().used() is None
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(MissingExtraError, match=r"ticketry\[energy\]"):
        EnergyEstimate()


def test_an_estimate_is_made_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = object()
    monkeypatch.setattr(meters, "EnergyEstimate", lambda: made)
    assert isinstance(open_energy_meter("meter", tmp_path), EnergyMeter)
    assert open_energy_meter("estimate", tmp_path) is made
    domain(tmp_path, "intel-rapl:0", 5)
    assert isinstance(open_energy_meter("estimate", tmp_path), EnergyMeter)  # a meter is better
    with pytest.raises(UsageError, match="energy must be meter or estimate, got 'guess'"):
        open_energy_meter("guess")
