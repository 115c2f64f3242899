"""How long tk.compile takes, and how much longer a first call is than others: from nothing, and with a warm cache.

Each is timed in a new process that has imported torch and ticketry, once with an empty cache folder, then with what the
first has left: "the same model" (its plan and kernels are cached), and "other weights" (only kernels are, as for the
next ticket of a search). A model is captured anew each time. CPU time of one thread: other processes do not add to it.

    python benchmarks/compile_time.py resnet-18:cifar10 --batch 64
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

from common import Row, finished, main, parser, seconds_row, user_environment

ROUNDS, QUICK_ROUNDS = 5, 1
TARGETS = {"nothing kept": 1.0, "the same model": 0.2}

CHILD = """
import json, sys, time
import torch
import ticketry as tk
from ticketry.tasks import catalogue

torch.set_num_threads(1)
network, task, batch, density, seed = json.loads(sys.argv[1])
task = catalogue.get(task, model=network)
torch.manual_seed(seed)
model = task.build().eval()
mask = tk.prune(model, density=density)
x = task.example(batch)
tk.compile
clock = time.process_time
begin = clock()
fast = tk.compile(model, mask, x, threads=1)
made = clock()
fast(x)
first = clock()
fast(x)
print(json.dumps([made - begin, first - made - (clock() - first)]))
"""


def measure(arguments: argparse.Namespace) -> list[Row]:
    rows = []
    for asked in arguments.networks:
        network, _, task = asked.partition(":")
        found: dict[str, list[list[float]]] = {"nothing kept": [], "the same model": [], "other weights": []}
        for _ in range(QUICK_ROUNDS if arguments.quick else ROUNDS):
            with tempfile.TemporaryDirectory() as cache:
                for name, seed in (("nothing kept", 0), ("the same model", 0), ("other weights", 1)):
                    found[name].append(once(cache, network, task, arguments.batch, arguments.density, seed))
        for name, pairs in found.items():
            how = f"batch {arguments.batch}, {arguments.density:.0%} kept, CPU time, one thread, {len(pairs)} rounds"
            compiled, first = zip(*pairs, strict=True)
            rows.append(seconds_row(f"{asked}, {name}: tk.compile", compiled, target=TARGETS.get(name), how=how))
            rows.append(seconds_row(f"{asked}, {name}: first call, over another", first, how=how))
    return rows


def once(cache: str, *settings: object) -> list[float]:
    """Seconds of a compilation and of what the first call takes more than the second, in a new process."""
    environment = {**user_environment(), "TICKETRY_CACHE": cache, "OMP_NUM_THREADS": "1"}
    found: list[float] = json.loads(finished([sys.executable, "-c", CHILD, json.dumps(settings)], environment))
    return found


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("networks", nargs="*", default=["resnet-18:cifar10"], help="network:task")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--density", type=float, default=0.1)
    main("compile_time", measure, options)
