"""Bits flipped in every file of a store, in tickets, model files and plans: how many are read wrong, and are found.

    python benchmarks/bit_flips.py --flips 2000 --output benchmarks/results/….json

Of each kind of file so many bits are flipped, one at a time. Read again by the library, the file may be refused, or
give what was written; anything else is silently wrong. `store check` has to find each flip in a store (by its
functions, and of those that are repaired by the command too), and after `store check --repair` the store has to be
sound.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from torch import nn

import ticketry as tk
from flips import FILES, flip, make_store, nothing_is_wrong, trials
from ticketry.cli import main
from ticketry.core.structure.plans import ShrinkPlan
from ticketry.errors import TicketryError
from ticketry.experiments.stores import find_damaged_files
from ticketry.lab.store.maintenance import check
from ticketry.lab.store.store import Store


def quietly(*words: str) -> int:
    """The exit code of a command; what it prints is not shown."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(list(words))


def is_found(store: Path) -> bool:
    """Return whether `store check` finds damage; calls the library, because starting the command takes longer."""
    try:
        opened = Store(store)
        return not check(opened, more=list(find_damaged_files(opened))).is_undamaged
    except TicketryError:
        return True


def of_a_store(folder: Path, flips: int, repairs: int, seed: int) -> dict[str, Counter[str]]:
    """Flips by kind of file."""
    store = make_store(folder / "store")
    counts = {}
    for pattern in FILES:
        counts[pattern] = found = Counter[str]()
        for number, (path, position, bit) in enumerate(trials(store, pattern, count=flips, seed=seed)):
            before = flip(path, position, bit)
            found["flips"] += 1
            found["silently wrong"] += not nothing_is_wrong(store, path)
            found["found by check"] += is_found(store)
            if number < repairs:
                found["found by the command"] += quietly("store", "check", "--store", str(store)) == 1
                copy = folder / "copy"
                shutil.copytree(store, copy)
                found["repairs"] += 1
                mended = quietly("store", "check", "--repair", "--store", str(copy)) == 0
                sound = quietly("store", "check", "--store", str(copy)) == 0
                found["mended"] += mended and sound
                shutil.rmtree(copy)
            path.write_bytes(before)
    return counts


def of_a_file(path: Path, read: Callable[[], bool], flips: int, seed: int) -> Counter[str]:
    """Flips in one file; `read` says whether it gave what was written."""
    draw, found = random.Random(seed), Counter[str]()
    size = path.stat().st_size
    for _ in range(flips):
        before = flip(path, draw.randrange(size), draw.randrange(8))
        found["flips"] += 1
        try:
            found["silently wrong"] += not read()
        except TicketryError:
            found["refused"] += 1
        path.write_bytes(before)
    return found


def unpacked(bundle: Path) -> dict[str, bytes]:
    """Return path and content of each file that a bundle writes into an empty store."""
    with tempfile.TemporaryDirectory() as name:
        tk.store.unpack(bundle, store=name)
        return {str(path.relative_to(name)): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}


def network() -> nn.Module:
    """Convolutions and a linear layer, half of their weights gone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
    tk.prune(model, density=0.5).apply_(model)
    return model


def run(flips: int, repairs: int, seed: int) -> dict[str, dict[str, int]]:
    """All counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = of_a_store(folder, flips, repairs, seed)
        model, inputs = network(), torch.randn(2, 3, 8, 8)
        fast = tk.compile(model, None, inputs)
        file = fast.save(folder / "model.tk")
        wanted = fast(inputs)
        found["model.tk"] = of_a_file(file, lambda: torch.equal(tk.engine.load(file)(inputs), wanted), flips, seed)
        bundle = tk.store.pack((), folder / "results.tkz", store=make_store(folder / "packed")).path
        whole = unpacked(bundle)
        found["results.tkz"] = of_a_file(bundle, lambda: unpacked(bundle) == whole, flips, seed)
        plan = ShrinkPlan({"w": (6, 2)}, {"w": {0: (0, 2, 5)}}, {"layer": {"out_features": 3}})
        kept = plan.save(folder / "plan.safetensors")
        found["plan.safetensors"] = of_a_file(kept, lambda: ShrinkPlan.load(kept) == plan, flips, seed)
    return {kind: dict(counts) for kind, counts in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="of each kind of file")
    parser.add_argument("--repairs", type=int, default=20, help="of each kind of file, how many are repaired too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    counts = run(arguments.flips, arguments.repairs, arguments.seed)
    total: Counter[str] = sum((Counter(one) for one in counts.values()), Counter())
    for kind, one in counts.items():
        print(f"{kind:40} {one}")
    print(f"{'all':40} {dict(total)}  in {time.monotonic() - began:.0f} s")
    if arguments.output:
        arguments.output.write_text(json.dumps({"by file": counts, "all": total}, indent=1) + "\n")
