"""Files changed in every way, by structure and by bytes, and read: no crash, no hang, no traceback.

    python benchmarks/fuzz_files.py --inputs 5000 --format ticket --output benchmarks/results/….json

Each input is a good file of a format, changed: values of its JSON replaced by hostile ones, entries taken away,
repeated or nested; entries of a safetensors header likewise; or bytes flipped, cut, repeated. Where it is changed by
structure it gets a matching digest, as a forger would add. A reader may refuse it with an error of
the library. Anything else that is raised, or takes longer than ten seconds, is a failure: it is shown with the
number of its input.

`fuzz_readers.py` calls the readers alone, of every format, a hundred times as fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_changes import RUN_FILE, changed, changed_header, damaged_bytes, sealed_values, toml

import ticketry as tk
from flips import KEY, RUN, make_store
from ticketry.cli.listing import read_record
from ticketry.cli.search import read_arguments
from ticketry.core.structure.plans import ShrinkPlan
from ticketry.core.ticket.folder import build_manifest_with_digest
from ticketry.errors import TicketryError
from ticketry.evidence.rivals import build_task
from ticketry.experiments.stores import find_damaged_files
from ticketry.lab.store.bundle import MAGIC
from ticketry.lab.store.files import bytes_with_digest, read_with_digest
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.store import Store
from ticketry.records.campaign import read_campaign_record
from ticketry.records.ticket import RetrainingInfo, read_ticket_info
from ticketry.report import read_evidence_about_runs, summary_lines, verdict_line
from ticketry.report.campaigns import markdown
from ticketry.report.exporting import _csv_files
from ticketry.report.subject import read_report_subject
from ticketry.tasks.recipe import recipe_from_dict

SECONDS = 10
MEMORY = 8 << 30
# -- formats: each changes a good file in `store`, and gives what reads it --------------------------------------------


def change_json(path: Path, draw: random.Random, seal: Callable[[dict[str, Any]], bytes]) -> None:
    """By structure, with a digest that is right, or by bytes."""
    if draw.random() < 0.25:
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
        return
    values = json.loads(path.read_bytes())
    values.pop("sha256", None)
    values = changed(values, draw)
    path.write_bytes(seal(values) if isinstance(values, dict) else json.dumps(values).encode())


def ticket(store: Path, draw: random.Random) -> Callable[[], object]:
    folder = next(store.glob("runs/*/tickets/*"))
    if draw.random() < 0.7:
        change_json(folder / "ticket.json", draw, build_manifest_with_digest)
    else:
        file = folder / draw.choice(("mask.safetensors", "start.safetensors", "model.safetensors"))
        how = draw.choice((changed_header, damaged_bytes))
        file.write_bytes(how(file.read_bytes(), draw))
        manifest = json.loads((folder / "ticket.json").read_bytes())
        manifest.pop("sha256")
        data = file.read_bytes()
        manifest["files"][file.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "ticket.json").write_bytes(build_manifest_with_digest(manifest))

    def read() -> None:
        found = tk.Ticket.load(folder)
        found.describe()
        found._repr_html_()
        told = read_ticket_info(RetrainingInfo, found.info, str(folder))
        recipe_from_dict(told.recipe)
        build_task(found)

    return read


def record(store: Path, draw: random.Random) -> Callable[[], object]:
    pattern = draw.choice(("runs/*/run.json", "evidence/*.json", "campaigns/*.json"))
    path = next(store.glob(pattern))
    change_json(path, draw, sealed_values)

    def read() -> None:
        if path.parent.name == "campaigns":
            markdown(read_campaign_record(read_with_digest(path) or {}, str(path)))
        run = read_record(next(store.glob("runs/*/run.json")))
        subject = read_report_subject(run, read_evidence_about_runs(store, [RUN]))
        list(_csv_files(subject))
        summary_lines(run)
        verdict_line(run)

    return read


def results(store: Path, draw: random.Random) -> Callable[[], object]:
    path = draw.choice([*store.glob("results/*/*/*.json"), *store.glob("memo/*/*/*.json"), store / "store.json"])
    change_json(path, draw, sealed_values)

    def read() -> None:
        opened = Store(store)
        for kind in ("masks", "removed"):
            for file in store.glob(f"memo/{kind}/*/*.json"):
                opened.load_memo(kind, file.stem)
        check(opened, more=list(find_damaged_files(opened)))
        collect_garbage(opened, dry_run=True, grace_seconds=0)
        opened.load_valid_result(KEY, 5)

    return read


def plan(store: Path, draw: random.Random) -> Callable[[], object]:
    path = store / "plan"
    good = ShrinkPlan({"w": (6, 2)}, {"w": {0: (0, 2, 5)}}, {"layer": {"out_features": 3}}).to_bytes()
    path.write_bytes(draw.choice((changed_header, damaged_bytes))(good, draw))
    return lambda: ShrinkPlan.load(path)


def bundle(store: Path, draw: random.Random) -> Callable[[], object]:
    path, place = store / "results.tkz", store / "unpacked"
    shutil.rmtree(place, ignore_errors=True)
    tk.store.pack((), path, store=store)
    data = path.read_bytes()
    if draw.random() < 0.2:
        path.write_bytes(damaged_bytes(data, draw))
    else:
        path.write_bytes(changed_bundle(data, draw))
    return lambda: tk.store.unpack(path, store=place)


def changed_bundle(data: bytes, draw: random.Random) -> bytes:
    """With changes in its list or in one of its records, and digests that are right."""
    start = len(MAGIC) + 65
    length = int.from_bytes(data[start : start + 8], "little")
    told = json.loads(data[start + 8 : start + 8 + length])
    rest = data[start + 8 + length :]
    if draw.random() < 0.5:
        told = changed(told, draw)
    else:
        at, bodies = 0, []
        for part in told["parts"]:
            bodies.append(rest[at : at + part["packed"]])
            at += part["packed"]
        chosen = draw.choice([index for index, part in enumerate(told["parts"]) if part["kind"] != "blob"])
        values = json.loads(zlib.decompress(bodies[chosen]))
        values.pop("sha256", None)
        made_of = changed(values, draw)
        record = bytes_with_digest(made_of) if isinstance(made_of, dict) else json.dumps(made_of).encode()
        bodies[chosen] = zlib.compress(record, 9)
        digest = hashlib.sha256(record).hexdigest()
        told["parts"][chosen].update(size=len(record), packed=len(bodies[chosen]), sha256=digest)
        rest = b"".join(bodies)
    listed = json.dumps(told).encode()
    whole = len(listed).to_bytes(8, "little") + listed + rest
    return MAGIC + hashlib.sha256(whole).hexdigest().encode() + b"\n" + whole


def run_file(store: Path, draw: random.Random) -> Callable[[], object]:
    path = store / "again.toml"
    if draw.random() < 0.3:
        path.write_bytes(damaged_bytes(toml(RUN_FILE).encode(), draw))
    else:
        values = changed(RUN_FILE, draw)
        path.write_text(toml(values) if isinstance(values, dict) else str(values), encoding="utf-8")

    def read() -> None:
        try:
            read_arguments(["--config", str(path)], command="search")
        except SystemExit:
            return

    return read


FORMATS = {"ticket": ticket, "record": record, "store": results, "plan": plan, "run-file": run_file, "bundle": bundle}


def fuzz(name: str, inputs: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Counts of what happened, and the failures: each with the number of its input."""
    counts, failures = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store")
        good = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
        for number in range(inputs):
            draw = random.Random(f"{seed} {name} {number}")
            for path, data in good.items():
                if not path.exists() or path.read_bytes() != data:
                    path.write_bytes(data)
            counts["inputs"] += 1
            read = FORMATS[name](store, draw)
            signal.alarm(SECONDS)
            try:
                read()
                counts["read"] += 1
            except TicketryError:
                counts["refused"] += 1
            except BaseException as error:
                counts["failed"] += 1
                failures.append(f"{name} {number}: {''.join(traceback.format_exception(error)[-4:])}")
            finally:
                signal.alarm(0)
    return counts, failures


def too_long(*_: object) -> None:
    raise TimeoutError(f"it takes more than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="of each format")
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, too_long)
    logging.getLogger("ticketry").setLevel(logging.CRITICAL)
    found, shown = {}, []
    for name in FORMATS if arguments.format == "all" else [arguments.format]:
        began = time.monotonic()
        found[name], failures = fuzz(name, arguments.inputs, arguments.seed)
        shown += failures
        print(f"{name:10} {dict(found[name])}  in {time.monotonic() - began:.0f} s")
    print("\n".join(shown[:20]))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if shown else 0


if __name__ == "__main__":
    sys.exit(main())
