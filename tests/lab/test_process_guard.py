"""Freed memory stays in a process, or leaves it (the kernel's own counts)."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")

COUNT = """
import resource
import numpy as np
from ticketry.lab.process import keep_freed_memory
def step():
    large = [np.ones(9_000_000, np.float32) for _ in range(3)]  # 34 MiB each: glibc alone keeps at most 32
    return sum(float(array[-1]) for array in large)
def faults():
    for _ in range(3):  # the heap grows to what steps need
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert sum(step() for _ in range(3)) == 9
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = faults()
print(left, *[faults() for _ in range(3)] if keep_freed_memory() else [])
"""


def run(code: str, *words: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    if len(found := [float(part) for part in done.stdout.split()]) < 1 + (code is COUNT):
        pytest.skip("another C library than glibc")
    return found


def test_pages_are_filled_once() -> None:
    left, *kept = run(COUNT)
    assert min(kept) < left / 4  # where memory is short, the system takes some pages back


HOLES = """
import sys
import torch
from ticketry.lab.process import give_back_freed_memory
if sys.argv[1] == "give" and not give_back_freed_memory():
    sys.exit()
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
large = torch.ones(7_500_000); del large  # from now on glibc takes blocks as large as this into its heap
before = resident()
stays = []
for _ in range(8):  # long-lived blocks between short-lived ones that grow
    goes = [torch.ones(4_000_000 + 100_000 * len(stays)) for _ in range(2)]
    stays.append(torch.ones(500_000))
    del goes
print(resident() - before)
"""


@pytest.mark.slow
def test_freed_blocks_are_given_back() -> None:
    """8 blocks of 2 MB stay."""
    assert run(HOLES, "give")[0] < 24 < run(HOLES, "leave")[0]
