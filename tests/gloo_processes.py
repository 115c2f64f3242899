"""Two processes over gloo, for tests: real ones, each with a function of this test's file."""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ticketry.errors import TicketryError


def run_ranks(worker: Callable[..., Any], folder: Path, *arguments: Any, ranks: int = 2) -> list[Any]:
    """Run ``worker(rank, folder, *arguments)`` in `ranks` processes of one group; return the results.

    An exception in one is raised here, with its traceback as text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_main, (worker, ranks, folder, arguments), nprocs=ranks, start_method="spawn")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(ranks)]


def errors_of(calls: Mapping[str, Callable[[], Any]]) -> dict[str, tuple[type, str]]:
    """Return kind and text of the library's error that each named call raises."""
    found = {}
    for name, call in calls.items():
        try:
            call()
        except TicketryError as error:
            found[name] = type(error), str(error)
    return found


def assert_told(found: Mapping[str, tuple[type, str]], expected: Mapping[str, tuple[type, str]]) -> None:
    """Check that exactly the expected calls raised an error of that kind with these words."""
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in expected.items()}
    for name, (_, text) in expected.items():
        assert text in found[name][1], name


def _main(rank: int, worker: Callable[..., Any], ranks: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        torch.save(worker(rank, folder, *arguments), folder / f"rank-{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
