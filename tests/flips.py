"""A store with one file of every kind, flips of its bits, and checks of what is read then."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import ticketry as tk
from made_records import search_record, verify_record
from strangers import forged, info_of_digits
from ticketry.core.ticket.folder import to_json_values
from ticketry.errors import TicketryError
from ticketry.lab.store.bundle import MAGIC
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry.report import write_report

KEY = digest_of({"numerics": NUMERICS})  # a result with an empty segment
RUN = "imp-digits-0123abcd"
FILES = (
    "store.json",
    "blobs/*/*.safetensors",
    "results/*/*/*.json",
    "memo/*/*/*.json",
    "partial/*.safetensors",
    "runs/*/run.json",
    "runs/*/run.toml",
    "runs/*/report.html",
    "evidence/*.json",
    "campaigns/*.json",
    "runs/*/tickets/*/ticket.json",
    "runs/*/tickets/*/mask.safetensors",
    "runs/*/tickets/*/start.safetensors",
    "runs/*/tickets/*/model.safetensors",
)
"""Every kind of file in a store that a command reads, and the report."""


def make_store(folder: Path, *, page: bool = True) -> Path:
    """Create a store with one file of every kind, optionally without an HTML page."""
    store = Store(folder)
    run = {**search_record(levels=1, replicates=2), "run": RUN}
    write_with_digest(store.paths.run(RUN) / "run.json", run)
    (store.paths.run(RUN) / "run.toml").write_text(run["config"])
    write_with_digest(store.paths.evidence("verify-1"), {**verify_record(), "run": RUN})
    write_with_digest(store.paths.campaign("small-demo"), campaign_values())
    if page:
        file = store.paths.run(RUN) / "report.html"
        if not _PAGE:
            _PAGE.append(write_report(run, file).read_bytes())
        file.write_bytes(_PAGE[0])
    model = store.put_tensors({"w": torch.arange(9.0)})
    cost = {"steps": 5, "train_seconds": 1.0}
    metrics = {"test": {"accuracy": 97.25, "loss": 0.125}, "validation": {"accuracy": 96.5, "loss": 0.25}}
    record = {"segment": {"blobs": [model]}, "step": 5, "model": model, "training": None, "variants": {}, "cost": cost}
    store.put_result(KEY, 5, {**record, "metrics": metrics})
    mask = store.put_mask(tk.Mask({"w": torch.arange(9) > 3}))
    store.put_memo("masks", KEY, {"mask": mask, "seconds": 0.5})
    store.put_memo("removed", mask, {"shares": {"w": 0.25}})
    store.put_checkpoint("cd" * 32, 3, {"w": torch.arange(4.0)})
    forged(store.paths.run(RUN) / "tickets" / "replicate-0-level-01", info_of_digits())
    return folder


_PAGE: list[bytes] = []
"""The report, which takes a second to draw."""


def campaign_values() -> dict[str, Any]:
    """Return the record of a campaign with one hypothesis."""
    sides = {
        "a": {"run": "one", "role": "ticket", "values": [9.0]},
        "b": {"run": "one", "role": "dense", "values": [8.0]},
    }
    claim = {
        "name": "better",
        "statement": "It is.",
        "metric": "accuracy",
        "family": "all",
        "found": "undecided",
        **sides,
    }
    claim |= {"above": 0.0, "margin": 0.5, "confidence": 0.95, "n": 1, "limit": 3}
    run = {"name": "one", "method": "imp", "task": "digits", "runs": [RUN], "replicates": 1}
    campaign = {"format": 1, "kind": "campaign", "name": "small-demo", "title": "Small", "scale": "demo"}
    files = [{"sha256": "ab" * 32, "since": "2026-11-22T00:00:00Z"}]
    return {**campaign, "files": files, "claims": [claim], "runs": [run]}


def trials(store: Path, pattern: str, *, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Yield file, byte and bit of random flips; the first and the last byte are among them."""
    draw = random.Random(f"{seed} {pattern}")
    paths = sorted(store.glob(pattern))
    assert paths, f"there is no {pattern}"
    for number in range(count):
        path = paths[number % len(paths)]
        size = path.stat().st_size
        position = 0 if number == 1 else size - 1 if number == 2 else draw.randrange(size)
        yield path, position, draw.randrange(8)


def flip(path: Path, position: int, bit: int) -> bytes:
    """Flip a bit of a file; return the former content."""
    before = path.read_bytes()
    data = bytearray(before)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return before


def nothing_is_wrong(folder: Path, path: Path) -> bool:
    """Return whether reading a file with a flipped bit raises, gives what was written, or finds nothing."""
    try:
        return _reads_right(folder, path)
    except TicketryError:
        return True


def _reads_right(folder: Path, path: Path) -> bool:
    place = path.relative_to(folder).parts[0]
    if path.name in ("run.toml", "report.html"):
        return True  # only people read it; `store check` finds the flip
    if place == "store.json":
        return Store(folder).result(KEY, 5) is not None
    store = Store(folder)
    if place == "blobs":
        return tuple(store.get_bytes(path.stem)[:0]) == ()  # it has the requested digest, or raises
    if place == "results":
        found = store.load_valid_result(KEY, 5)
        return found is not None and found["metrics"]["test"] == {"accuracy": 97.25, "loss": 0.125}
    if place == "memo":
        kind = path.relative_to(folder).parts[1]
        wanted = {"masks": "mask", "removed": "shares"}[kind]
        answer = store.load_memo(kind, path.stem)
        return answer is None or answer[wanted] in ({"w": 0.25}, *(blob.stem for blob in store.paths.blob_files()))
    if place == "partial":
        known = store.newest_checkpoint("cd" * 32, 10)
        return known is None or torch.equal(known[1]["w"], torch.arange(4.0))
    if "tickets" in path.parts:
        return tk.Ticket.load(path.parent).info == to_json_values(info_of_digits(), "info")
    values = read_with_digest(path) or {}
    if place == "campaigns":
        return all(values.get(name) == value for name, value in campaign_values().items())
    wanted = search_record(levels=1, replicates=2) if path.name == "run.json" else verify_record()
    return all(values.get(name) == value for name, value in wanted.items() if name not in ("run", "name"))


def repacked(bundle: Path, change: Callable[[dict[str, Any]], None], more: bytes = b"") -> None:
    """The bundle with a changed list of parts, and a digest that is right."""
    data = bundle.read_bytes()
    start = len(MAGIC) + 65
    length = int.from_bytes(data[start : start + 8], "little")
    told = json.loads(data[start + 8 : start + 8 + length])
    change(told)
    listed = json.dumps(told).encode()
    whole = len(listed).to_bytes(8, "little") + listed + data[start + 8 + length :] + more
    bundle.write_bytes(MAGIC + hashlib.sha256(whole).hexdigest().encode() + b"\n" + whole)
