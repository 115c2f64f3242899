"""Freed memory stays in the process (the kernel's own count of pages)."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from ticketry.lab.process_guard import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("none"); sys.exit()
def step():
    large = [torch.ones(9_000_000) for _ in range(3)]  # 34 MiB each: more than glibc ever keeps by itself
    return sum(float(tensor[-1]) for tensor in large)
for _ in range(4):  # the heap grows to what steps need
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert sum(step() for _ in range(3)) == 9
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_pages_are_filled_once() -> None:
    if (kept := faults("keep")) == "none":
        pytest.skip("another C library than glibc")
    few = int(faults("leave")) / 4
    # Some: systems take pages back from whom they like, more of them where memory is short.
    assert int(kept) < few or min(int(faults("keep")) for _ in range(3)) < few


HOLES = """
import sys
import torch
from ticketry.lab.process_guard import give_back_freed_memory
if sys.argv[1] == "give" and not give_back_freed_memory():
    print("none"); sys.exit()
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
large = torch.ones(7_500_000); del large  # glibc takes blocks as large as this into its heap from now on
before = resident()
stays = []
for _ in range(8):  # what stays lies between what goes, and more is needed each time
    goes = [torch.ones(4_000_000 + 100_000 * len(stays)) for _ in range(2)]
    stays.append(torch.ones(500_000))
    del goes
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")
def test_freed_blocks_are_given_back() -> None:
    """8 blocks of 2 MB stay."""
    held = {}
    for how in ("give", "leave"):
        done = subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, text=True, check=True)
        if done.stdout.strip() == "none":
            pytest.skip("another C library than glibc")
        held[how] = float(done.stdout)
    assert held["give"] < 24 < held["leave"]
