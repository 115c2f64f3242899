"""Freed memory stays in the process (the kernel's own count of pages); what is stuck is ended with its children."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ticketry.lab.runners.process_guard import kill_with_children

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
    few = int(faults("leave")) / 4
    # Some: systems take pages back from whom they like, more of them where memory is short.
    assert int(kept) < few or min(int(faults("keep")) for _ in range(3)) < few


HOLES = """
import sys
import torch
from ticketry.lab.runners.process_guard import give_back_freed_memory
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


@pytest.mark.skipif(sys.platform == "win32", reason="jobs of Slurm run on Linux")
def test_a_stuck_process_is_ended_with_its_children() -> None:
    """Each ignores what can be ignored; the pipe that all of them hold is closed once none is left."""
    command = "trap '' INT TERM; sh -c \"trap '' INT TERM; echo ready; sleep 100; true\"; true"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        kill_with_children(process.pid)
        assert process.communicate(timeout=10)[0] == ""
        assert process.returncode == -9
