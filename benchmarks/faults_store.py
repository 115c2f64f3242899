"""Searches on machines that are killed, with a store in a bucket behind a network that fails: is all as it should be?

    python benchmarks/faults_store.py --faults 10000 --counts faults-store.json

Moto's S3 server and a proxy before it run as separate processes on loopback ports. The proxy corrupts a share
of the requests (`RATES`): it answers 500 or 503, closes the connection before or after the request is carried out,
breaks an answer off half way, or is two seconds late. A search is begun on one machine (with a separate cache), killed
with SIGKILL at a random moment, and begun again on another, until it ends. The store is copied into a
folder then, by `ticketry store copy`: all files must be what an undisturbed search leaves in a folder,
records without timings, tickets and tensors to the last byte, and `store check` has to find it sound. The counts are
kept after each trial: the same command resumes and adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from buckets import environment, faults_apart, made_bucket, moto_server
from faults.disturbed import (
    CASES,
    Child,
    difference,
    finished,
    fresh,
    left_behind,
    preloaded,
    undisturbed,
    without_pages,
)
from ticketry.files import write_atomically

RATES = {"busy": 0.12, "refused": 0.05, "cut": 0.05, "unanswered": 0.01, "slow": 0.005}
"""Share of requests by kind of fault, see `buckets.Faults`."""
_SEARCHES = ("search iterative", "search oneshot", "search gradual", "search early", "search continuous")
_MOST_KILLS = 3
_LEASE_SECONDS = 2


class Search(NamedTuple):
    """A search, and what it leaves behind in a folder if nothing disturbs it."""

    name: str
    place: Path
    seconds: float
    wanted: Mapping[str, str]


def trial(search: Search, bucket: str, draw: random.Random) -> Counter[str]:
    """One search over machines; what was counted."""
    name, place, seconds, wanted = search
    counts, work = Counter[str](trials=1), fresh(place)
    words = list(CASES[name].words)
    words[words.index("--store") + 1] = f"s3://{bucket}/of/us"
    for machine in ("cache-0", "cache-1"):
        shutil.rmtree(place / machine, ignore_errors=True)
    attempt = 0
    while True:
        child = _child(words, work, place / f"cache-{attempt % 2}")
        if child.wait(draw.uniform(0.3, 1.5) * seconds if counts["kills"] < _MOST_KILLS else 900):
            break
        child.signal_all(signal.SIGKILL)
        child.wait()
        counts["kills"] += 1
        attempt += 1
    wrong = [] if child.code == 0 else [f"code {child.code}: {child.read_output()[1][-800:]}"]
    if not wrong:
        copying = _child(["store", "copy", f"s3://{bucket}/of/us", "store", "--json"], work, place / "cache-0")
        copying.wait()
        wrong = [] if copying.code == 0 else [f"copy: {copying.read_output()[1][-800:]}"]
    if not wrong:
        wrong = difference(left_behind(work), without_pages(wanted))
        finished(["store", "check", "--store", "store"], work)
    if wrong:
        counts["wrong"] += 1
        print(f"{name}: {wrong}", file=sys.stderr)
    return counts


def _child(words: list[str], work: Path, cache: Path) -> Child:
    return Child(words, work, begin=lambda: os.environ.update(TICKETRY_CACHE=str(cache)))


def main() -> None:
    """Trials until so many faults were injected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--counts", type=Path, default=Path("faults-store.json"), help="where they are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so long")
    parser.add_argument("--seed", type=int, default=0, help="of the first search; the next one's is one more")
    arguments = parser.parse_args()
    preloaded()
    counts = Counter(json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {})
    with tempfile.TemporaryDirectory() as folder, moto_server() as server:
        run(arguments, Path(folder), server, counts)
    raise SystemExit(1 if counts["wrong"] else 0)


def run(arguments: argparse.Namespace, folder: Path, server: str, counts: Counter[str]) -> None:
    """The trials."""
    began = time.monotonic()
    searches = []
    for name in _SEARCHES:
        place = folder / name.replace(" ", "-")
        searches.append(Search(name, place, *undisturbed(CASES[name], place)))
    while injected(counts) < arguments.faults and time.monotonic() - began < arguments.seconds:
        number = arguments.seed + counts["trials"]
        bucket = made_bucket(server, f"trial-{number}-{os.getpid()}")
        with faults_apart(server, RATES, seed=number) as proxy:
            os.environ.update(environment(proxy.endpoint), TICKETRY_LEASE_SECONDS=str(_LEASE_SECONDS))
            counts.update(trial(searches[number % len(searches)], bucket, random.Random(number)))
            counts.update(proxy.counts)
        write_atomically(arguments.counts, (json.dumps(counts, indent=1, sort_keys=True) + "\n").encode())
        print(
            f"{counts['trials']} searches, {injected(counts)} faults, {counts['kills']} kills, {counts['wrong']} wrong"
        )


def injected(counts: Mapping[str, int]) -> int:
    """Faults so far."""
    return sum(counts.get(kind, 0) for kind in RATES)


if __name__ == "__main__":
    main()
