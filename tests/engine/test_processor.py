"""Names of processors, what tells generations of one name apart, and systems on which parts do not run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import ticketry as tk
from ticketry.errors import EngineError
from ticketry.lab.process import describe_machine
from ticketry_engine.bench.timing import describe_machine_difference, machine
from ticketry_engine.kernels.target import _host
from ticketry_engine.processor import kind_from_cpuinfo, list_unsupported, parse_cpuinfo

ZEN_3 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse2 avx avx2 bmi2
power management:

processor\t: 1
vendor_id\t: SomebodyElse
"""
ZEN_4 = ZEN_3.replace("model\t\t: 1", "model\t\t: 17").replace("avx2", "avx2 avx512f avx512_bf16")
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

processor\t: 1
CPU part\t: 0xfff
"""


def test_generations_of_one_name_are_of_different_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_cpuinfo(ZEN_3)["model name"] == parse_cpuinfo(ZEN_4)["model name"] == "AMD EPYC"
    assert kind_from_cpuinfo(parse_cpuinfo(ZEN_3)) == "AuthenticAMD 25 1 1 avx2"
    assert kind_from_cpuinfo(parse_cpuinfo(ZEN_4)) == "AuthenticAMD 25 17 1 avx2 avx512f avx512_bf16"
    assert kind_from_cpuinfo(parse_cpuinfo(ARM)) == "0x41 8 0x1 0xd40 1 bf16 asimd sve"
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert kind_from_cpuinfo({}) == "arm64"


def test_another_machine_is_one_of_another_kind_where_that_is_told() -> None:
    here = machine()
    assert describe_machine_difference(here) == ""
    # The next mapping is from a file that was written before kinds were told.
    assert describe_machine_difference({"processor": here["processor"]}) == ""
    name, told = here["processor"], describe_machine_difference({**here, "processor_kind": "AuthenticAMD 25 1 1"})
    assert told.startswith(f"{name}, AuthenticAMD 25 1 1; this one is {name}, {here['processor_kind']}")
    assert describe_machine_difference({"processor": "Another 3000"}) == f"Another 3000; this one is {name}"


MISSING = [
    *(("Linux", "x86_64", ""), ("Darwin", "arm64", "")),
    *(("Windows", "AMD64", "tk.compile"), ("Linux", "riscv64", "this one is riscv64")),
]


@pytest.mark.parametrize(("system", "processor", "what"), MISSING)
def test_what_is_missing(system: str, processor: str, what: str) -> None:
    told = "; ".join(list_unsupported(system, processor))
    assert (what in told) if what else not told


def test_it_is_told_at_import_and_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes itself for another: importing warns, a loop of one's own runs, compiling is refused."""
    code = "import platform; platform.system, platform.machine = lambda: 'Windows', lambda: 'AMD64'; import ticketry"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert re.search("RuntimeWarning: what of ticketry does not run on this machine: tk.compile.*sched_yield", told)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    monkeypatch.setattr("ticketry_engine.kernels.target._host", _host.__wrapped__)  # it remembers this machine
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    mask = tk.prune(model, density=0.5, keep_at_least=1)
    with tk.hold(model, mask):
        model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(EngineError, match="sched_yield"):
        tk.compile(model, mask, torch.ones(1, 8))


def test_results_and_costs_tell_the_kind() -> None:
    kind = machine()["processor_kind"]
    assert describe_machine()["processor_kind"] == kind
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    costs = tk.cost.model(model, torch.randn(2, 8), threads=1, densities=(0.3, 1.0))
    assert costs.about["processor_kind"] == kind
