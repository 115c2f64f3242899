"""Where a part does not run, on a system or a processor, it is told at import, and by the part itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from samples import sample
from ticketry_engine import processor as platforms

_ELSEWHERE = """
import platform, warnings
platform.system, platform.machine = lambda: {system!r}, lambda: {processor!r}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import ticketry as tk
print(*(one.message for one in told if "ticketry" in str(one.message)), sep="\\n")
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
mask = tk.prune(model, density=0.5, keep_at_least=1)
with tk.hold(model, mask):
    model(torch.ones(1, 8)).sum().backward()
try:
    tk.compile(model, mask, torch.ones(1, 8))
except tk.errors.EngineError as error:
    print("refused:", error)
else:
    print("compiled")
"""


@pytest.mark.parametrize(
    ("system", "processor", "what"),
    [
        ("Linux", "x86_64", ""),
        ("Linux", "aarch64", ""),
        ("Darwin", "arm64", ""),
        ("Windows", "AMD64", "tk.compile"),
        ("Windows", "ARM64", "--on slurm"),
        ("Linux", "riscv64", "this one is riscv64"),
    ],
)
def test_what_is_missing(system: str, processor: str, what: str) -> None:
    told = "; ".join(platforms.missing(system, processor))
    assert (what in told) if what else not told


@pytest.mark.parametrize(
    ("system", "processor", "why"),
    sample([("Windows", "AMD64", "sched_yield"), ("Linux", "ppc64le", "this one is ppc64le")], 1),
)
def test_it_is_told_at_import_and_the_rest_runs(system: str, processor: str, why: str) -> None:
    """In a process that takes itself for another: importing warns, a loop of one's own runs, compiling is refused."""
    code = _ELSEWHERE.format(system=system, processor=processor)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0].startswith("what of ticketry does not run on this machine: tk.compile")
    assert why in told[0]
    assert told[1].startswith("refused: ")
    assert why in told[1]


def test_nothing_is_said_where_all_runs() -> None:
    code = "import warnings; warnings.simplefilter('error'); import ticketry"
    subprocess.run([sys.executable, "-c", code], check=True)
