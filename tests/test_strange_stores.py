"""Stores of strangers: whatever names, links, pipes and contents they have, commands stay inside and end in words."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from cli.calling import call
from made_records import search_record, verify_record
from samples import sample
from strangers import Attack, Watch, changed_json, forged, info_of_digits, watch
from ticketry.lab.store.files import write_sealed
from ticketry.lab.store.store import Store

__all__ = ["watch"]  # a fixture

OF_A_STORE = (
    "list runs --store {0}",
    "list tickets --store {0}",
    "store check --store {0}",
    "store gc --store {0} --grace-seconds 0",
    "store pack --store {0} -o {1}/packed.tkz",
    "store copy {0} {1}/copied",
    "store check --store {0} --repair",
)
OF_RECORDS = ("report --store {0} --figures",)
WHOLE = ("report --all --store {0} --export {1}/files --output {1}/page.html",)
"""Commands that read a store which they did not make: those of all of it, of its records, and what takes longest."""

KEY, CLEAR = "ab" * 32, "\x1b[2Jcleared"
NAMES = [
    "../../../evil",
    "..",
    ".",
    "",
    "/tmp/evil",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[2Jcleared",
    "x" * 3000,
    "~/evil",
]


def made_store(folder: Path) -> Path:
    """A store with a run, a verification, a result, tensors, a memo and a checkpoint, as a search leaves them."""
    store = Store(folder)
    run = search_record(levels=1, replicates=2)
    name = run["run"] = "imp-digits-0123abcd"
    write_sealed(store.paths.run(name) / "run.json", run)
    (store.paths.run(name) / "run.toml").write_text(run["config"])
    write_sealed(store.paths.evidence("verify-1"), {**verify_record(), "run": name})
    tensors = store.put_tensors({"w": torch.ones(3)})
    key = "ab" * 32
    store.put_result(
        key,
        5,
        {
            "segment": {},
            "step": 5,
            "model": tensors,
            "training": None,
            "variants": {},
            "metrics": None,
            "cost": {"steps": 5, "train_seconds": 1.0},
        },
    )
    store.put_memo("masks", key, {"mask": store.put_mask(tk.Mask({"w": torch.ones(3, dtype=torch.bool)}))})
    store.put_partial(key, 3, {"w": torch.ones(3)})
    forged(store.paths.run(name) / "tickets" / "replicate-0-level-01", info_of_digits())
    return folder


def _run(store: Path) -> Path:
    return next(store.glob("runs/*/run.json"))


def _rename(name: str) -> Attack:
    def attack(store: Path) -> None:
        with changed_json(_run(store)) as record:
            record["run"] = name

    return attack


def _everywhere(text: str) -> Attack:
    """Every text of every record becomes this one."""

    def attack(store: Path) -> None:
        for path in (_run(store), *store.glob("evidence/*.json"), *store.glob("memo/*/*/*.json")):
            with changed_json(path) as record:
                record.update(_replaced(record, text))

    return attack


def _replaced(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(part, text) for key, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, text) for part in value]
    return text if isinstance(value, str) else value


def _link(place: str, target: str) -> Attack:
    """Something of the store becomes a link; its target lies beside the store if it is relative."""

    def attack(store: Path) -> None:
        for path in [store / place] if not any(letter in place for letter in "*?") else sorted(store.glob(place))[:1]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.symlink_to(target if target.startswith("/") else store.parent / "outside" / target)

    return attack


def _pipe(place: str) -> Attack:
    def attack(store: Path) -> None:
        path = next(store.glob(place))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        os.mkfifo(path)

    return attack


def _content(place: str, data: bytes) -> Attack:
    def attack(store: Path) -> None:
        next(store.glob(place)).write_bytes(data)

    return attack


def _named(name: str) -> Attack:
    """A file of that name, beside one of its kind if the store has any."""

    def attack(store: Path) -> None:
        place = store.joinpath(*name.split("/"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(next(store.glob("results/*/*/*.json")).read_bytes())

    return attack


def _nested(place: str, depth: int) -> Attack:
    """A record that can be read, and is nested so deeply that whoever walks it breaks off."""

    def attack(store: Path) -> None:
        with changed_json(next(store.glob(place))) as record:
            value: list[Any] = []
            for _ in range(depth):
                value = [value]
            record["more"] = value

    return attack


def _digest_that_is_a_path(store: Path) -> None:
    with changed_json(next(store.glob("results/*/*/*.json"))) as record:
        record["model"] = "../../../../outside/secret"


PLACES_OF_A_STORE = ("runs/*/run.json", "evidence/*.json", "results/*/*/*.json", "memo/*/*/*.json", "store.json")
TEXTS = ("../../../evil", "\x1b[2Jcleared", "=HYPERLINK(1)", "<script>evil()</script>")
STORES: dict[str, Attack] = {
    **{f"a run called {name[:20]!r}": _rename(name) for name in NAMES},
    **{f"every text is {text[:20]!r}": _everywhere(text) for text in TEXTS},
    **{f"{place} is a link to another's": _link(place, "secret.json") for place in PLACES_OF_A_STORE},
    **{f"{place} is a link to what never ends": _link(place, "/dev/zero") for place in PLACES_OF_A_STORE},
    **{f"{place} is a pipe": _pipe(place) for place in (*PLACES_OF_A_STORE, "blobs/*/*", "partial/*", "runs/*/run.toml",
                                                        "runs/*/tickets/*/ticket.json")},
    **{f"{place} is a link to a folder": _link(place, ".") for place in
       ("runs", "runs/*", "evidence", "results", "results/*", "blobs", "blobs/*", "memo", "partial", "damaged",
        "runs/*/tickets", "runs/*/tickets/*")},
    **{f"{place} is a link to a file": _link(place, "precious.safetensors") for place in
       ("blobs/*/*", "partial/*", "runs/*/report.html", "runs/*/metric-by-density.svg", "runs/*/tickets/*/*")},
    **{f"{place} is nested deeply": _content(place, b"[" * 100_000) for place in PLACES_OF_A_STORE},
    **{f"{place} has a number without an end": _content(place, b'{"a": ' + b"9" * 10_000 + b"}")
       for place in PLACES_OF_A_STORE},
    **{f"{place} is no object": _content(place, b"[1, 2]") for place in PLACES_OF_A_STORE},
    **{f"{place} is empty": _content(place, b"") for place in PLACES_OF_A_STORE},
    **{f"a file is called {name!r}": _named(name) for name in
       (f"blobs/ab/{CLEAR}.safetensors", f"evidence/{CLEAR}.json", f"memo/{CLEAR}/ab/x.json", f"campaigns/{CLEAR}.json",
        f"runs/{CLEAR}/run.json", "runs/\u202eab/run.json", f"results/ab/{KEY}/²²².json", f"results/ab/{KEY}/x.json")},
    **{f"{place} is nested {depth} deep": _nested(place, depth) for depth in (150, 400) for place in
       ("runs/*/run.json", "evidence/*.json", "results/*/*/*.json")},
    "a digest is a path": _digest_that_is_a_path,
}  # fmt: skip


def test_the_store_itself_is_sound(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    store = made_store(watch.folder / "stranger")
    for command in (*OF_A_STORE, *OF_RECORDS, *WHOLE):
        assert call(capsys, *shlex.split(command.format(store, watch.folder)))[0] == 0, command


@pytest.mark.parametrize("name", sample(STORES, list(STORES)[::5]))
def test_a_store_of_a_strangers(watch: Watch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    outside = watch.folder / "outside"
    outside.mkdir()
    for file in ("secret.json", "precious.safetensors", "00/precious.safetensors", ".left.tmp"):
        (outside / file).parent.mkdir(exist_ok=True)
        (outside / file).write_text('{"secret": 1}')
    store = made_store(watch.folder / "stranger")
    STORES[name](store)
    before = outside_of(watch.folder)
    allowed = watch.folder / "made"
    allowed.mkdir()
    of_records = not any(place in name for place in ("results", "memo", "blobs", "partial", "damaged", "ticket"))
    for command in (*(OF_RECORDS if of_records else ()), *(WHOLE if "text" in name else ()), *OF_A_STORE):
        code, out, err = call(capsys, *shlex.split(command.format(store, allowed)))
        told = out + err
        assert code in (0, 1, 2), command
        assert "Traceback" not in told
        assert "secret" not in out.replace(str(outside), "").replace("secret.json", ""), "what is outside is not shown"
        assert all(letter.isprintable() for letter in told.replace("\n", "")), command
        assert outside_of(watch.folder) == before, command
    watch.expect()
    watch.untouched()
    pages = [path.read_text() for path in (*store.glob("**/*.html"), *allowed.glob("*.html")) if path.is_file()]
    assert not any("<script>evil" in page for page in pages)


def outside_of(folder: Path) -> dict[str, str]:
    """Every file below the folder that is not the stranger's own, with its content."""
    return {
        str(path): path.read_bytes().hex()
        for path in folder.rglob("*")
        if path.is_file() and not {"stranger", "made", "__pycache__"} & set(path.relative_to(folder).parts)
    }
