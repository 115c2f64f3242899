"""Bundles: the same runs give the same file, what is unpacked is what was packed, and nothing else is believed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import ticketry as tk
from cli.calling import call
from flips import flip, make_store, repacked
from ticketry.cli import main
from ticketry.errors import StoreError, TicketryError
from ticketry.experiments.search import execute
from ticketry.lab.store.bundle import MAGIC, Bundle, Source, sort_by_similarity, write_bundle
from ticketry.records.network import TICKET, Point

SEARCH: dict[str, Any] = {
    "task": "digits",
    "rate": 0.5,
    "rewind": "10%",
    "replicates": 1,
    "recipe": {"length": "10it"},
    "controls": ["random_reinit"],
    "workers": 0,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a search of two levels, and the run's name."""
    store = tmp_path_factory.mktemp("bundles") / "store"
    return store, tk.run("iterative", store=store, levels=2, **SEARCH).name


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_the_same_runs_give_the_same_bytes_wherever_they_are_packed(searched: tuple[Path, str], tmp_path: Path) -> None:
    store, name = searched
    for weights in (False, True):
        first = tk.store.pack(name, tmp_path / "first.tkz", store=store, weights=weights).path.read_bytes()
        elsewhere = tmp_path / f"elsewhere-{weights}"
        done = tk.store.unpack(tmp_path / "first.tkz", store=elsewhere)
        assert (
            tk.store.pack([name], tmp_path / "third.tkz", store=elsewhere, weights=weights).path.read_bytes() == first
        )
    assert done.left_out == 0
    again = tk.run("iterative", store=elsewhere, levels=2, **SEARCH)
    assert again.now["segments_trained"] == 0, "with weights nothing is trained again"
    assert [one.load().mask.density for one in again.tickets] == pytest.approx([0.5, 0.25], abs=1e-4)


def test_without_masks_records_tell_and_tickets_are_trained_again(searched: tuple[Path, str], tmp_path: Path) -> None:
    store, name = searched
    whole = tk.store.pack(name, tmp_path / "whole.tkz", store=store).bytes
    packed = tk.store.pack(name, tmp_path / "records.tkz", store=store, masks=False)
    # dense: at the rewind step and at the end, and what the control starts from
    assert (packed.runs, packed.results, packed.masks) == (1, 3, False)
    assert packed.bytes < whole / 2
    elsewhere = tmp_path / "elsewhere"
    tk.store.unpack(packed.path, store=elsewhere)
    assert not list(elsewhere.glob("blobs/*/*"))
    before = tk.run("iterative", store=store, levels=2, **SEARCH)
    again = tk.run("iterative", store=elsewhere, levels=2, **SEARCH)
    assert again.now["segments_trained"] == 4  # two tickets and their controls, and what they start from
    assert [row.test for row in again.record.points] == [row.test for row in before.record.points]
    assert main(["store", "check", "--store", str(elsewhere)]) == 0
    with pytest.raises(StoreError, match="leave masks in, or weights out"):
        tk.store.pack(name, tmp_path / "none.tkz", store=store, masks=False, weights=True)


def test_bundles_of_version_1_are_read(searched: tuple[Path, str], tmp_path: Path) -> None:
    """Whose masks lie in the file as they are."""
    store, name = searched
    with Bundle(tk.store.pack(name, tmp_path / "new.tkz", store=store).path) as opened:
        told, parts = msgspec.to_builtins(opened.contents), list(opened.parts())
    packed = [data if part.kind == "blob" else zlib.compress(data, 9) for part, data in parts]
    for part, data in zip(told["parts"], packed, strict=True):
        del part["coding"]
        part["packed"] = len(data)
    listed = json.dumps({**told, "format": 1}).encode()
    whole = len(listed).to_bytes(8, "little") + listed + b"".join(packed)
    seal = hashlib.sha256(whole).hexdigest().encode() + b"\n"
    (tmp_path / "old.tkz").write_bytes(b"ticketry.bundle.1\n" + seal + whole)
    for version in ("old", "new"):
        tk.store.unpack(tmp_path / f"{version}.tkz", store=tmp_path / version)
    assert files(tmp_path / "old") == files(tmp_path / "new")


def test_search_continues_from_its_masks_with_the_same_bits(searched: tuple[Path, str], tmp_path: Path) -> None:
    store, name = searched
    longer = tk.run("iterative", store=store, levels=3, **SEARCH)
    tk.store.pack(name, tmp_path / "small.tkz", store=store)
    elsewhere = tmp_path / "elsewhere"
    tk.store.unpack(tmp_path / "small.tkz", store=elsewhere)
    again = tk.run("iterative", store=elsewhere, levels=2, **SEARCH)
    assert again.now["segments_trained"] == 0, "the run itself is reported without training"
    on = tk.run("iterative", store=elsewhere, levels=3, **SEARCH)
    # the new level's ticket and its control; what they start from is trained again by the way
    assert on.now["segments_trained"] == 2
    assert [row.test for row in on.record.points] == [row.test for row in longer.record.points]
    assert [bool(row.ticket) for row in on.record.points if row.role == "ticket"] == [False, False, True]
    assert main(["store", "check", "--store", str(elsewhere)]) == 0
    assert main(["store", "gc", "--grace-seconds", "0", "--store", str(elsewhere)]) == 0


@pytest.mark.slow
def test_weights_that_were_left_out_are_trained_by_workers(
    searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once, as all else is; and what is told of them is no new training."""
    store, name = searched
    tk.store.pack(name, tmp_path / "small.tkz", store=store)
    tk.store.unpack(tmp_path / "small.tkz", store=tmp_path / "elsewhere")
    told: list[Any] = []

    def here(*_: Any) -> None:
        raise AssertionError("trained in the process that asked")

    monkeypatch.setattr("ticketry.lab.training.execute.retrain_left_out_weights", here)
    before = tk.Lab(store).store
    digests = [path.stem for path in (tmp_path / "elsewhere" / "memo" / "left-out").rglob("*.*")]
    assert len(digests) > 2
    with tk.Lab(tmp_path / "elsewhere", workers=2, on_event=told.append) as lab:
        lab.segment(tk.task("digits"), start=0)  # of this task they are
        make_store = lab.gather([partial(lab.store.get_bytes, digest) for digest in digests])
        assert lab.ledger.segments_trained == 0
    assert make_store == [before.get_bytes(digest) for digest in digests]
    assert {event.kind for event in told} >= {"progress", "aside"}
    assert "finished" not in {event.kind for event in told}


def test_other_bits_stand_for_those_of_the_bundle_and_that_is_told(
    searched: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ticketry.lab.training import state

    store, name = searched
    tk.store.pack(name, tmp_path / "small.tkz", store=store)
    tk.store.unpack(tmp_path / "small.tkz", store=tmp_path / "elsewhere")
    drawn = state.initial_state

    def other_processor(task: Any, seed: int) -> Any:
        return {
            key: value * (1 + 1e-6) if value.is_floating_point() else value for key, value in drawn(task, seed).items()
        }

    monkeypatch.setattr("ticketry.lab.training.job.initial_state", other_processor)
    on = tk.run("iterative", store=tmp_path / "elsewhere", levels=3, **SEARCH)
    assert on.now["segments_trained"] == 2
    assert "have other bits than the bundle's" in caplog.text
    assert main(["store", "check", "--store", str(tmp_path / "elsewhere")]) == 0


def test_the_command_line(searched: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, name = searched
    bundle = tmp_path / "results.tkz"
    assert main(["store", "pack", name, "-o", str(bundle), "--store", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == bundle.stat().st_size
    assert main(["store", "unpack", str(bundle), "--store", str(tmp_path / "other")]) == 0
    assert "trained again when they are needed" in capsys.readouterr().out
    found = call(capsys, "store", "pack", "no-such-run", "--store", str(store))
    assert found[0] == 1
    assert f"there is no run or campaign no-such-run in {store}: it has" in found[2]
    assert "a bundle of everything" in found[2]


def test_a_run_that_has_not_ended_goes_on_elsewhere_from_a_bundle_of_all(tmp_path: Path) -> None:
    """Of three levels one was trained: it is not trained again, nor is the dense network but for its weights."""

    class Stopped(Exception):
        pass

    def stop(point: Point) -> None:
        if point.role == TICKET:
            raise Stopped

    asked = {**SEARCH, "controls": ()}
    request = tk.run("iterative", store=tmp_path / "other", levels=3, **asked).request
    with tk.Lab(tmp_path / "here") as lab, pytest.raises(Stopped):
        execute(lab, request, on_point=stop)
    packed = tk.store.pack((), tmp_path / "all.tkz", store=tmp_path / "here")
    assert (packed.runs, packed.results >= 2) == (0, True)
    tk.store.unpack(packed.path, store=tmp_path / "there")
    with tk.Lab(tmp_path / "there") as lab:
        cost = execute(lab, request).cost
    assert (cost.segments_asked, cost.segments_trained) == (1 + 3, 2)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of a store with one of everything."""
    return tk.store.pack((), tmp_path / "results.tkz", store=make_store(tmp_path / "store", page=False)).path


def _refused(bundle: Path, tmp_path: Path, match: str) -> None:
    with pytest.raises(TicketryError, match=match):
        tk.store.unpack(bundle, store=tmp_path / "place" / "elsewhere")
    assert not (tmp_path / "place").exists(), "something was written"


def test_every_flipped_bit_is_refused(bundle: Path, tmp_path: Path) -> None:
    draw, size = random.Random(0), bundle.stat().st_size
    for position in [0, 30, len(MAGIC), len(MAGIC) + 64, size - 1, *(draw.randrange(size) for _ in range(6))]:
        before = flip(bundle, position, draw.randrange(8))
        _refused(bundle, tmp_path, "is no bundle|do not match its digest")
        bundle.write_bytes(before)
    assert tk.store.unpack(bundle, store=tmp_path / "good").new


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("", {"numerics": 99}, "results of the numerics 99, this ticketry trains with 1"),
        ("", {"store": 1}, "of the store format 1, this ticketry reads 2"),
        ("", {"format": 1}, "not one of version 2"),
        ("", {"code": "import os"}, "its list of parts is not valid"),
        ("", {"parts": []}, "other sizes than its list says"),
        ("run", {"name": ["../../evil"]}, "is not a file name"),
        ("result", {"name": ["ab" * 32, "5"]}, "of another training than its key says"),
        ("result", {"name": ["../x", "5"]}, "no digest"),
        ("memo", {"name": ["../masks", "ab" * 32]}, "no remembered values of the kind"),
        ("memo", {"name": ["masks"]}, "with 1 names, not 2"),
        ("blob", {"name": ["ab" * 32]}, "its digest is another"),
        ("blob", {"size": 1 << 40}, "would take more than"),
        ("result", {"size": 5 << 20}, "would take more than 4 MB once unpacked"),
        ("blob", {"coding": "difference"}, "a difference from a part of another size"),
        ("blob", {"coding": "whole"}, "two sizes"),
        ("blob", {"coding": "pickle"}, "its list of parts is not valid"),
    ],
)
def test_forged_lists_are_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path, kind: str, changes: dict[str, Any], match: str
) -> None:
    def forge(told: dict[str, Any]) -> None:
        (next(part for part in told["parts"] if part["kind"] == kind) if kind else told).update(changes)

    repacked(bundle, forge)
    _refused(bundle, tmp_path, match)


def test_part_listed_twice_is_refused(bundle: Path, tmp_path: Path) -> None:
    repacked(bundle, lambda told: told["parts"].append({**told["parts"][0], "packed": 0, "size": 0}))
    _refused(bundle, tmp_path, "a part twice")


def test_a_record_that_swells_is_refused(bundle: Path, tmp_path: Path) -> None:
    """50 MB of spaces, told as 10 bytes, and told as they are beside a file of a hundredth."""
    swollen = zlib.compress(b" " * 50_000_000, 9)
    part = {"kind": "run", "name": ["bomb"], "packed": len(swollen), "sha256": "ab" * 32, "coding": "zlib"}
    for size, match in ((10, "another size than the list says"), (80 << 20, "would take more than")):
        data = bundle.read_bytes()
        repacked(bundle, lambda told, size=size: told["parts"].append({**part, "size": size}), swollen)
        _refused(bundle, tmp_path, match)
        bundle.write_bytes(data)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreError, match="cannot read"):
            tk.store.unpack(path, store=tmp_path / "elsewhere")
    (tmp_path / "text").write_text("ticketry")
    with pytest.raises(StoreError, match="is no bundle"):
        tk.store.unpack(tmp_path / "text", store=tmp_path / "elsewhere")


def test_a_mask_behind_one_that_shrinks_to_nothing_is_read(tmp_path: Path) -> None:
    """A part of which compression leaves less than a hundredth lies there as it is; no difference is taken from it."""
    draw = random.Random(0)
    whole, some = bytes(range(256)) * 400, draw.randbytes(2_000)
    rest = whole[2_000:]
    parts = [whole, some + rest, some[:800] + draw.randbytes(1_200) + rest]
    sources = [Source("blob", (hashlib.sha256(part).hexdigest(),), lambda part=part: part) for part in parts]
    path = tmp_path / "masks.tkz"
    told = write_bundle(path, sources, store=2, numerics=1, weights=False, runs=())
    assert [part.coding for part in told.parts] == ["whole", "zlib", "difference"]
    with Bundle(path) as bundle:
        assert [data for _, data in bundle.parts()] == parts


# -- masks in an order in which neighbours differ little --------------------------------------------------------------


def searches(levels: int, replicates: int, weights: int) -> dict[str, bytes]:
    """Nested masks of several searches, each level keeping four fifths of the one before."""
    found, draw = {}, np.random.default_rng(0)
    for replicate in range(replicates):
        order = draw.permutation(weights)
        for level in range(1, levels + 1):
            kept = np.zeros(weights, bool)
            kept[order[: int(weights * 0.8**level)]] = True
            found[f"{replicate}-{level:02}"] = np.packbits(kept).tobytes()
    return found


def test_levels_of_a_search_are_neighbours() -> None:
    masks = searches(10, 4, 60_000)
    names = list(masks)
    random.Random(0).shuffle(names)
    order = sort_by_similarity(names, masks.__getitem__)
    assert sorted(order) == sorted(masks)
    steps = [(one[:2] == two[:2], abs(int(one[2:]) - int(two[2:]))) for one, two in itertools.pairwise(order)]
    assert sum(same and apart == 1 for same, apart in steps) >= len(order) - 8
