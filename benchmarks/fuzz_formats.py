"""Every kind of file that is read: a good one, how it is changed, and the function that commands read it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import fuzz_model_file as model_files
import torch
from fuzz_changes import (
    HOSTILE,
    RUN_FILE,
    Place,
    changed,
    changed_header,
    damaged_bytes,
    places,
    sealed_values,
    toml,
)
from graphs import small

import ticketry as tk
from made_records import add_verdicts, bench_record, search_record, stability_record, verify_record, with_rounds
from strangers import forged, info_of_digits
from ticketry.cli.listing import read_record
from ticketry.core.mask import Mask, to_bytes
from ticketry.core.structure.plans import ShrinkPlan
from ticketry.core.ticket.folder import build_manifest_with_digest
from ticketry.core.ticket.state_dicts import state_to_bytes
from ticketry.errors import TicketryError
from ticketry.evidence.rivals import build_task
from ticketry.experiments.run_file import read_run_file, require_trust
from ticketry.experiments.stores import find_damaged_files
from ticketry.integrations import jobs as job_file
from ticketry.lab.store.files import read_with_digest
from ticketry.lab.store.maintenance import check
from ticketry.lab.store.store import Store
from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run
from ticketry.records.schema import as_json
from ticketry.records.ticket import RetrainingInfo, SearchInfo, read_ticket_info
from ticketry.report import read_evidence_about_runs, summary_lines, verdict_line
from ticketry.report.exporting import _csv_files
from ticketry.report.subject import read_report_subject
from ticketry.tasks.data.tables import read_table
from ticketry.tasks.fine_tuning import read_texts
from ticketry.tasks.recipe import recipe_from_dict
from ticketry_engine.ir import model_file
from ticketry_engine.support.files import append_digest, verify_and_strip_digest

KEY, RUN = "ab" * 32, "imp-digits-0123abcd"


@dataclass
class Format:
    """A kind of file."""

    name: str
    put: Callable[[Random, bool], None]
    """Write a changed one; by bytes or by structure."""
    read: Callable[[], Any]
    """Read the file in the way that commands do."""
    summary: Callable[[Any], str] = repr
    """Text of the result, for comparisons."""
    has_digest: bool = True
    """Whether the format knows its bytes from others."""
    good: str = field(init=False)

    def __post_init__(self) -> None:
        self.good = self.summary(self.read())


def formats(folder: Path) -> Iterator[Format]:
    """Yield all formats; each has a valid file in a separate folder until `put` replaces it."""
    for number, make in enumerate((_tickets, _records, _evidence, _stores, _tensors, _settings, _models, _data)):
        yield from make(folder / str(number))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _json_put(
    path: Path, good: dict[str, Any], seal: Callable[[dict[str, Any]], bytes] = sealed_values
) -> Callable[[Random, bool], None]:
    """Changes of a JSON file with a digest."""
    known: list[Place] = list(places(good))
    data = seal(good)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

    def put(draw: Random, by_bytes: bool) -> None:
        if by_bytes:
            path.write_bytes(damaged_bytes(data, draw))
            return
        values = changed(good, draw, known)
        try:
            path.write_bytes(seal(values) if isinstance(values, dict) else json.dumps(values).encode())
        except (TicketryError, UnicodeError, ValueError):  # values without a digest
            path.write_bytes(json.dumps(values).encode())

    return put


# -- tickets -----------------------------------------------------------------------------------------------------------


def _tickets(folder: Path) -> Iterator[Format]:
    of_manifest, of_tensors = (forged(folder / name, info_of_digits()) for name in ("manifest", "tensors"))
    manifest = json.loads((of_manifest / "ticket.json").read_bytes())
    del manifest["sha256"]

    def reading(where: Path) -> Callable[[], tk.Ticket]:
        def read() -> tk.Ticket:
            found = tk.Ticket.load(where)
            found.describe()
            found._repr_html_()
            retraining = read_ticket_info(RetrainingInfo, found.info, "the ticket")
            recipe_from_dict(retraining.recipe)
            read_ticket_info(SearchInfo, found.info, "the ticket")
            build_task(found)
            return found

        return read

    def summary(found: tk.Ticket) -> str:
        states = [state_to_bytes(state) for state in (found.start, found.trained) if state is not None]
        parts = [hashlib.sha256(data).hexdigest() for data in (to_bytes(found.mask), *states)]
        return _text([found.info, parts])

    put = _json_put(of_manifest / "ticket.json", manifest, build_manifest_with_digest)
    yield Format("ticket.json", put, reading(of_manifest), summary)
    good = {path.name: path.read_bytes() for path in sorted(of_tensors.glob("*.safetensors"))}

    def put_tensors(draw: Random, by_bytes: bool) -> None:
        for name, data in good.items():
            (of_tensors / name).write_bytes(data)
        name = draw.choice(sorted(good))
        data = damaged_bytes(good[name], draw) if by_bytes or draw.random() < 0.3 else changed_header(good[name], draw)
        (of_tensors / name).write_bytes(data)
        fact = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if not by_bytes:
            files = {**manifest["files"], name: fact}
            (of_tensors / "ticket.json").write_bytes(build_manifest_with_digest({**manifest, "files": files}))
        else:
            (of_tensors / "ticket.json").write_bytes(build_manifest_with_digest(manifest))

    yield Format("ticket's tensors", put_tensors, reading(of_tensors), summary)


# -- records -----------------------------------------------------------------------------------------------------------


def _records(folder: Path) -> Iterator[Format]:
    plain = {**search_record(levels=1, replicates=1, controls=("shuffled",)), "run": RUN}
    several = {"run.json": plain, "run.json of gates": {**with_rounds(add_verdicts(plain), rounds=1), "run": RUN}}
    for name, good in several.items():
        path = folder / name / RUN / "run.json"

        def read(path: Path = path) -> Any:
            run = read_record(path)
            list(_csv_files(read_report_subject(run)))
            summary_lines(run)
            verdict_line(run)
            return run

        yield Format(name, _json_put(path, good), read, lambda run: _text(as_json(run)))


def _evidence(folder: Path) -> Iterator[Format]:
    run = read_run({**search_record(levels=1, replicates=1), "run": RUN})
    stability = stability_record(replicates=1, levels=(3,))
    made = {
        "verify": verify_record(seeds=3),
        "stability": {**stability, "rows": stability["rows"][:8]},
        "bench": bench_record(batches=(1,)),
        "curves": bench_record(batches=(1,), curves=True),
    }
    for name, record in made.items():
        path = folder / name / "evidence" / "one.json"
        good = {**record, "run": RUN}

        def read(path: Path = path) -> Any:
            list(_csv_files(read_report_subject(run, read_evidence_about_runs(path.parents[1], [RUN]))))
            return read_evidence(read_with_digest(path) or {})

        yield Format(f"evidence of {name}", _json_put(path, good), read, lambda found: _text(as_json(found)))


# -- stores ------------------------------------------------------------------------------------------------------------


def _stores(folder: Path) -> Iterator[Format]:
    store = Store(folder)
    model = store.put_tensors({"w": torch.arange(9.0)})
    cost = {"steps": 5, "train_seconds": 1.0}
    metrics = {"test": {"accuracy": 97.25, "loss": 0.125}, "validation": {"accuracy": 96.5, "loss": 0.25}}
    result = {"segment": {"blobs": [model]}, "step": 5, "model": model, "training": None, "variants": {"a": model}}
    result |= {"cost": cost, "metrics": metrics}
    put = _json_put(store.paths.result(KEY, 5), result)
    yield Format("result", put, lambda: store.load_valid_result(KEY, 5), _text)
    memos: dict[str, dict[str, Any]] = {
        "masks": {"mask": model, "seconds": 0.5},
        "plans": {"plan": model, "mask": model},
        "sizes": {"train": 100, "validation": 10, "test": 10},
        "removed": {"shares": {"w": 0.25}},
        "distances": {"distance": 0.5},
        "barriers": {"errors": [0.1, 0.2, 0.3], "recalibrated": 20},
        "coverage": {"layers": [{"name": "w", "coverage": 0.5}]},
        "memory": {"bytes": 1024},
        "flops": {"dense": 1e6, "products": [[["w"], 1e6]], "examples": 2, "first": 1.0, "others": 1.0, "fixed": 0.0},
    }
    puts = {kind: _json_put(store.paths.memo_file(kind, KEY), memo) for kind, memo in memos.items()}
    chosen = ["masks"]

    def put_memo(draw: Random, by_bytes: bool) -> None:
        chosen[:] = [draw.choice(sorted(puts))]
        puts[chosen[0]](draw, by_bytes)

    # A damaged memo counts as missing and is computed again.
    yield Format("memo", put_memo, lambda: store.load_memo(chosen[0], KEY), _text, has_digest=False)
    described = {"format": 2, "kind": "ticketry.store"}
    other = folder / "other"
    other.mkdir()
    (other / "results").mkdir()
    whole = _json_put(other / "store.json", described, lambda values: json.dumps(values).encode())
    yield Format("store.json", whole, lambda: Store(other).result(KEY, 5), has_digest=False)
    one = folder / "checked"

    def put_checked(draw: Random, by_bytes: bool) -> None:
        checked_put[draw.randrange(len(checked_put))](draw, by_bytes)

    checked = Store(one)
    evidence = {**verify_record(seeds=3), "run": RUN}
    checked_put = [
        _json_put(checked.paths.result(KEY, 5), result),
        _json_put(checked.paths.memo_file("sizes", KEY), memos["sizes"]),
        _json_put(checked.paths.evidence("verify-1"), evidence),
    ]

    def read_checked() -> list[str]:
        return sorted(str(path) for path in check(checked, more=list(find_damaged_files(checked))).damaged)

    yield Format("store check", put_checked, read_checked, has_digest=False)


def _tensors(folder: Path) -> Iterator[Format]:
    """Yield tensors of a store: files named by their digest, with any content."""
    store = Store(folder / "store")
    state = bytes(tk_tensors({"w": torch.arange(9.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}))
    mask = to_bytes(Mask({"w": torch.arange(9) > 3}))
    held: dict[str, str] = {}

    def putting(name: str, data: bytes) -> Callable[[Random, bool], None]:
        held[name] = store.put_bytes(data)

        def put(draw: Random, by_bytes: bool) -> None:
            store.paths.blob(held[name]).unlink(missing_ok=True)
            made = damaged_bytes(data, draw) if by_bytes else changed_header(data, draw)
            held[name] = hashlib.sha256(made).hexdigest()
            path = store.paths.blob(held[name])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made)

        return put

    def state_told(found: dict[str, torch.Tensor]) -> str:
        return str(
            [(name, one.dtype, one.shape, one.view(-1).view(torch.uint8).tolist()) for name, one in found.items()]
        )

    yield Format(
        "tensors", putting("tensors", state), lambda: store.get_tensors(held["tensors"]), state_told, has_digest=False
    )
    yield Format(
        "mask",
        putting("mask", mask),
        lambda: store.get_mask(held["mask"]),
        lambda m: str(to_bytes(m)),
        has_digest=False,
    )

    def put_checkpoint(draw: Random, by_bytes: bool) -> None:
        for path in store.paths.partial_files():
            path.unlink()
        made = damaged_bytes(state, draw) if by_bytes else changed_header(state, draw)
        digest = hashlib.sha256(state if by_bytes else made).hexdigest()
        path = store.paths.partial_file(KEY, 3, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made)

    yield Format("checkpoint", put_checkpoint, lambda: store.newest_checkpoint(KEY, 10), has_digest=False)
    path = folder / "plan"
    plan = ShrinkPlan({"w": (6, 2)}, {"w": {0: (0, 2, 5)}}, {"layer": {"out_features": 3}})
    plan.save(path)
    inner, whole = verify_and_strip_digest(path.read_bytes()), path.read_bytes()

    def put_plan(draw: Random, by_bytes: bool) -> None:
        path.write_bytes(damaged_bytes(whole, draw) if by_bytes else _resealed(changed_header(inner, draw)))

    yield Format("plan", put_plan, lambda: ShrinkPlan.load(path))


def tk_tensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """Return tensors as a store writes them, with extra text in the metadata."""
    from safetensors.torch import save

    return bytes(save(tensors, metadata={"x": "{}"}))


def _resealed(data: bytes) -> bytes:
    """With a digest that is right, where the file can have one."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        return data
    entries = {"__metadata__": header.pop("__metadata__"), **header}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return append_digest(len(text).to_bytes(8, "little") + text + data[8 + length :])


# -- run files, models, data -------------------------------------------------------------------------------------------


def _settings(folder: Path) -> Iterator[Format]:
    from ticketry.experiments.decoding import decode_settings
    from ticketry.experiments.run_file import decode_search_options
    from ticketry.search import method
    from ticketry.tasks.recipe import recipe_from_dict

    folder.mkdir(parents=True)
    path = folder / "again.toml"
    known = list(places(RUN_FILE))
    path.write_text(toml(RUN_FILE))

    def put(draw: Random, by_bytes: bool) -> None:
        if by_bytes:
            path.write_bytes(damaged_bytes(toml(RUN_FILE).encode(), draw))
        else:
            values = changed(RUN_FILE, draw, known)
            text = toml(values) if isinstance(values, dict) else str(values)
            path.write_bytes(text.encode(errors="surrogatepass"))

    def read() -> Any:
        tables = read_run_file(path)
        require_trust(tables, set(), of="the file")
        chosen = method(str(tables.get("method", "iterative")))
        settings = decode_settings(tables.get("settings", {}), chosen.Settings, what="the file")
        return (
            settings,
            decode_search_options(tables),
            recipe_from_dict(tables["recipe"]) if "recipe" in tables else None,
        )

    yield Format("run file", put, read, has_digest=False)
    state = {"tensors": {"w": torch.arange(4.0)}, "list": [1, 2.5, None, "x"], "more": {"a": {"b": torch.ones(2)}}}
    job = folder / "job.safetensors"
    job_file.write_state(job, state)
    inner, whole = verify_and_strip_digest(job.read_bytes()), job.read_bytes()

    def put_job(draw: Random, by_bytes: bool) -> None:
        job.write_bytes(damaged_bytes(whole, draw) if by_bytes else _resealed(changed_header(inner, draw)))

    yield Format("state of a job", put_job, lambda: job_file.read_state(job))


def _models(folder: Path) -> Iterator[Format]:
    folder.mkdir(parents=True)
    path = folder / "model.tk"
    model_file.save(small(), path, {"ticket": "t", "list": [1, 2.5]})
    whole = path.read_bytes()
    data = model_file.dumps(small(), {"ticket": "t", "list": [1, 2.5]})
    length = int.from_bytes(data[:8], "little")
    text = next(iter(json.loads(data[8 : 8 + length])["__metadata__"].values()))
    changes = [*HOSTILE, *model_files.HOSTILE]

    def put(draw: Random, by_bytes: bool) -> None:
        if by_bytes:
            path.write_bytes(damaged_bytes(whole, draw))
            return
        many = range(draw.randint(1, 3))
        how = [
            (draw.randrange(1 << 12), draw.randrange(5), draw.choice(changes), draw.randrange(1 << 12)) for _ in many
        ]
        try:
            path.write_bytes(_resealed(model_files.damaged(data, text, draw.choice(("json", "json", "header")), how)))
        except (TypeError, ValueError, RecursionError):  # no JSON any more
            path.write_bytes(damaged_bytes(data, draw))

    def read() -> Any:
        graph, meta, _ = model_file.load(path)
        model_files.run_if_small(graph)
        return graph, meta

    def summary(found: Any) -> str:
        return hashlib.sha256(model_file.dumps(*found)).hexdigest()

    yield Format("model.tk", put, read, summary)


def _data(folder: Path) -> Iterator[Format]:
    """Tables of numbers and of texts: of the user's own, and as often found somewhere."""
    folder.mkdir(parents=True)
    rows = [{"text": f"it is {one}, she said", "label": one % 2, "x": one / 3} for one in range(12)]
    texts = {
        "table.csv": "a,b,c\n" + "".join(f"{one},{one / 7},{-one}e{one}\n" for one in range(12)),
        "texts.csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows),
        "texts.tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows),
        "texts.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    cells = ["", '"', ",", "\t", "\0", "nan", "inf", "1e999", "9" * 500, "\r", "\n", "é", "[" * 2000, "{}", "=1", "0x1"]
    for name, good in texts.items():
        path = folder / name
        path.write_text(good)

        def put(draw: Random, by_bytes: bool, path: Path = path, good: str = good) -> None:
            if by_bytes:
                path.write_bytes(damaged_bytes(good.encode(), draw))
                return
            lines = good.splitlines(keepends=True)
            for _ in range(draw.randint(1, 3)):
                at, cell = draw.randrange(len(lines)), draw.choice(cells)
                start = draw.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:start] + cell + lines[at][start + draw.choice((0, 1, 40)) :]
                lines[at:at] = draw.choice(([], [], [lines[at]], [cell + "\n"]))
            path.write_bytes("".join(lines).encode(errors="surrogatepass"))

        def read(path: Path = path) -> Any:
            return read_texts(path, ["text"], "label") if path.stem == "texts" else read_table(path)

        yield Format(name, put, read, has_digest=False)
