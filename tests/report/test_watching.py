"""What a page that renews itself is told, against records that are written, replaced and damaged while it looks."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.records.run import PROGRESS_FILE, ActiveSegment, Progress, ProgressPoint
from ticketry.report.watching import MOST_DONE, Watch, write_state


def progress(**changed: Any) -> Progress:
    """A search of which three networks are there."""
    points = [
        ProgressPoint(0, 0, "dense", 1.0, 90.0),
        ProgressPoint(0, 1, "ticket", 0.8, 91.0),
        ProgressPoint(1, 1, "ticket", 0.8, 92.5),
    ]
    told = {"metric": "accuracy", "unit": "%", "higher_is_better": True, "points": tuple(points)}
    return Progress(
        **{"run": "one", "title": "Iterative", "task": "digits", "began": 0.0, "at": time.time(), **told, **changed}
    )


def write(folder: Path, told: Progress) -> Path:
    """Its file, as a search writes it."""
    (path := folder / "live" / told.run / PROGRESS_FILE).parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(told))
    return path


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(
        lambda: tmp_path.glob(f"live/*/{PROGRESS_FILE}"),
        lambda: tmp_path.glob("runs/*/run.json"),
        lambda: tmp_path.glob("campaigns/*.json"),
        read_with_digest,
    )


def test_a_running_search_is_told_by_level(tmp_path: Path, watch: Watch) -> None:
    write(
        tmp_path,
        progress(expected=8, trained=2, began=100.0, at=time.time(), active=(ActiveSegment("level 2", 5, 40),)),
    )
    (run,) = watch.current_state()["runs"]
    assert (run["state"], run["networks"], run["expected"]) == ("running", 3, 8)
    assert run["active"] == [{"label": "level 2", "done": 5, "of": 40, "waiting": False}]
    dense, ticket = run["levels"]
    assert (dense["mean"], dense["sd"], dense["n"]) == (90.0, None, 1)
    assert (ticket["mean"], ticket["sd"], ticket["n"]) == (91.75, statistics.stdev([91.0, 92.5]), 2)


def test_time_left_is_that_of_networks_that_were_trained() -> None:
    # 100 s for 4 networks, of which 10 of 15 are left, for one was in the store.
    told = progress(
        expected=15, trained=4, began=100.0, at=200.0, points=(ProgressPoint(0, 0, "dense", 1.0, 90.0),) * 5
    )
    assert told.seconds_left == 250.0
    assert progress(expected=0, trained=4).seconds_left is None
    assert progress(expected=15, trained=0).seconds_left is None


def test_time_left_leaves_the_start_of_workers_out_and_waits_for_those_beside_the_first() -> None:
    # Two workers need 60 s to start; then each trains a network a second: 20 networks take 10 s.
    def told(at: float, trained: int) -> float | None:
        points = (ProgressPoint(0, 0, "dense", 1.0, 90.0),) * trained
        times = {"began": 100.0, "since": 160.0, "at": at}
        return progress(expected=20, trained=trained, points=points, at_once=2, **times).seconds_left

    assert told(161.0, 1) is None
    assert told(161.0, 2) == pytest.approx(9.0)
    assert told(163.0, 6) == pytest.approx(7.0)


def test_a_file_is_read_again_only_when_it_has_changed(
    tmp_path: Path, watch: Watch, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record(levels=2, replicates=1, controls=())
    path = tmp_path / "runs" / record["run"] / "run.json"
    read: list[Path] = []
    monkeypatch.setattr(watch, "_read", lambda file: read.append(file) or read_with_digest(file))
    path.parent.mkdir(parents=True)
    write_with_digest(path, record)
    first = watch.current_state()["runs"]
    assert first == watch.current_state()["runs"]
    assert read == [path]
    assert first[0]["networks"] == len(record["points"])
    write_with_digest(path, {**record, "title": "Renamed"})
    assert [run["title"] for run in watch.current_state()["runs"]] == ["Renamed"]
    path.write_bytes(path.read_bytes().replace(b"Renamed", b"Changed"))  # its digest is wrong now
    assert watch.current_state()["runs"] == []
    path.unlink()
    assert watch.current_state()["runs"] == []


def test_the_newest_of_many_finished_runs_are_shown(tmp_path: Path, watch: Watch, make_record: Any) -> None:
    record = make_record(levels=1, replicates=1, controls=())
    for number in range(MOST_DONE + 3):
        path = tmp_path / "runs" / f"run-{number:02d}" / "run.json"
        path.parent.mkdir(parents=True)
        write_with_digest(path, {**record, "run": path.parent.name})
        os.utime(path, (1e9 + number, 1e9 + number))
    assert [run["name"] for run in watch.current_state()["runs"]] == [
        f"run-{MOST_DONE + 2 - one:02d}" for one in range(MOST_DONE)
    ]


def test_half_a_file_is_left_out_until_it_is_whole(tmp_path: Path, watch: Watch) -> None:
    path = write(tmp_path, progress())
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert watch.current_state()["runs"] == []
    path.write_bytes(whole)
    assert [run["name"] for run in watch.current_state()["runs"]] == ["one"]


def test_what_is_written_is_a_call_with_plain_values(tmp_path: Path, watch: Watch) -> None:
    write(tmp_path, progress(title="</script>\u2028\"'"))
    write_state(tmp_path / "watch.js", watch.current_state())
    text = (tmp_path / "watch.js").read_text(encoding="ascii")
    assert json.loads(text.removeprefix("show(").removesuffix(");\n"))["runs"][0]["title"] == "</script>\u2028\"'"
