"""Freed memory stays in the process: the kernel's own count of the pages that it had to fill."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from ticketry.lab.runners.process_guard import keep_freed_memory
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
    assert int(kept) < int(faults("leave")) / 4  # some: systems take pages back from whom they like
