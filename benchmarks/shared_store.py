"""A search with its store in a bucket (moto's server on this machine) beside the same search with a folder.

    python benchmarks/shared_store.py --pairs 2 --length 3ep --levels 14

Searches alternate, each a separate command with an empty store and an empty cache. The rows show wall time and
processor time of each command, the ratio of each pair, and the medians. The server runs in a
separate process; on a machine whose cores are busy its work delays the clock, as a bucket's network would.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from buckets import environment, made_bucket, moto_server


def search(store: str, folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    words = ["search", "iterative", "--task", arguments.task, "--levels", str(arguments.levels), "--replicates", "1"]
    words += ["--controls", "none", "--workers", "0", "--recipe.length", arguments.length, "--store", store, "--json"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ticketry", *words],
        cwd=folder,
        env={**os.environ, "TICKETRY_CACHE": str(folder / f"cache-{time.monotonic_ns()}")},
        check=True,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def main() -> None:
    """Pairs of searches, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--task", default="mnist")
    parser.add_argument("--levels", type=int, default=14)
    parser.add_argument("--length", default="3ep")
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder, moto_server() as server:
        os.environ.update(environment(server))
        for number in range(arguments.pairs):
            bucket = f"s3://{made_bucket(server, f'pair-{number}')}"
            in_folder = search(f"store-{number}", Path(folder), arguments)
            in_bucket = search(bucket, Path(folder), arguments)
            ratios.append([there / here for there, here in zip(in_bucket, in_folder, strict=True)])
            told = zip(("clock", "processor"), in_folder, in_bucket, ratios[-1], strict=True)
            print("  ".join(f"{what}: {here:.1f} s, {there:.1f} s, {ratio:.3f}" for what, here, there, ratio in told))
            sys.stdout.flush()
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    print("bucket / folder, medians: clock {:.3f}, processor {:.3f}".format(*medians))


if __name__ == "__main__":
    main()
