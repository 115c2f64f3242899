"""What a search tells while it runs, against its record."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import ticketry as tk
from ticketry.experiments import run_record as telling
from ticketry.records.run import PROGRESS_FILE, Progress


@pytest.mark.slow
def test_a_search_tells_how_far_it_is_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written every hundredth of a second; the last is nearly the record, and then there is no file."""
    monkeypatch.setattr(telling, "PROGRESS_SECONDS", 0.01)
    seen: list[Progress] = []
    write = telling.write_atomically

    def written(path: Path, data: bytes) -> None:
        assert path == tmp_path / "live" / path.parent.name / PROGRESS_FILE
        write(path, data)
        seen.append(msgspec.json.decode(path.read_bytes(), type=Progress))

    monkeypatch.setattr(telling, "write_atomically", written)
    asked = {"recipe": {"length": "400it"}, "replicates": 1, "workers": 0, "device": "cpu"}
    run = tk.run("iterative", "digits", levels=2, controls=["shuffled"], store=tmp_path, **asked)
    assert not (tmp_path / "live" / run.record.name).exists()
    assert {one.run for one in seen} == {run.record.name}
    assert {one.expected for one in seen} == {len(run.record.points)}
    counts = [len(one.points) for one in seen]
    assert counts == sorted(counts)
    known = {(point.level, point.role): point.metric("accuracy") for point in run.record.points}
    for point in seen[-1].points:
        assert known[point.level, point.role] == point.value
    training = [one for told in seen for one in told.active]
    assert {one.of for one in training} <= {400}
    assert any(0 < one.done < 400 for one in training)


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PROGRESS_SECONDS", 0.01)
    asked = {"recipe": {"length": "20it"}, "replicates": 1, "workers": 0, "device": "cpu"}
    with tk.Lab(tmp_path, device="cpu") as lab:
        (lab.store.paths.root / "live").write_text("no folder")
    run = tk.run("oneshot", "digits", density=0.5, controls=[], store=tmp_path, **asked)
    assert [point.role for point in run.record.points] == ["dense", "ticket"]
