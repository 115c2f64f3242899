"""What a processor is called, and what tells generations of one name apart."""

from __future__ import annotations

import pytest
import torch

import ticketry as tk
from ticketry.lab.environment import environment
from ticketry_engine.bench.machine import another_machine, machine
from ticketry_engine.processor import facts_of, kind_of

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


def test_generations_of_one_name_are_of_different_kinds() -> None:
    assert facts_of(ZEN_3)["model name"] == facts_of(ZEN_4)["model name"] == "AMD EPYC"
    assert kind_of(facts_of(ZEN_3)) == "AuthenticAMD 25 1 1 avx2"
    assert kind_of(facts_of(ZEN_4)) == "AuthenticAMD 25 17 1 avx2 avx512f avx512_bf16"
    assert kind_of(facts_of(ARM)) == "0x41 8 0x1 0xd40 1 bf16 asimd sve"


def test_a_system_that_tells_nothing_has_the_kind_of_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert kind_of({}) == "arm64"


def test_another_machine_is_one_of_another_kind_where_that_is_told() -> None:
    here = machine()
    assert another_machine(here) == ""
    assert another_machine({"processor": here["processor"]}) == ""  # a file that was written before kinds were told
    assert another_machine({**here, "processor_kind": "AuthenticAMD 25 1 1"}).startswith(
        f"{here['processor']}, AuthenticAMD 25 1 1; this one is {here['processor']}, {here['processor_kind']}"
    )
    assert another_machine({"processor": "Another 3000"}) == f"Another 3000; this one is {here['processor']}"


def test_results_and_costs_tell_the_kind() -> None:
    kind = machine()["processor_kind"]
    assert environment()["processor_kind"] == kind
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    costs = tk.cost.model(model, torch.randn(2, 8), threads=1, densities=(0.3, 1.0))
    assert costs.about["processor_kind"] == kind
