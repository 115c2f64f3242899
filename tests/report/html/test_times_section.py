"""What is told of a timing: as much as its intervals bear, and that it was unsteady where its numbers disagree."""

from __future__ import annotations

from typing import Any

import pytest

from made_records import bench_record
from ticketry.records.evidence import read_evidence
from ticketry.records.ticket import SpeedRecord
from ticketry.report.figures import TIME_BY_ENGINE, Drawing
from ticketry.report.page import PagePart, template_macro

_DOT = Drawing(*2 * ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>',))


def _told(record: dict[str, Any]) -> str:
    speed = read_evidence(record)
    assert isinstance(speed, SpeedRecord)
    return template_macro("evidence.html", "saved_section")(speed, {TIME_BY_ENGINE: _DOT}, PagePart()).replace(
        "\N{NO-BREAK SPACE}", " "
    )


def _bench(saved: float, low: float, high: float, batches: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """At the first batch so much is saved; at the others 75 %, in steady times (3 % between quartiles)."""
    record = bench_record(batches=batches)
    record["comparisons"][0]["saved"][0].update(saved=saved, low=low, high=high)
    return record


def _row(record: dict[str, Any], engine: str) -> dict[str, Any]:
    return next(row for row in record["comparisons"][0]["times"] if row["engine"] == engine)


@pytest.mark.parametrize("ends", [(-0.208, 0.019), (-0.1, 0.0), (0.0, 0.2)])
def test_an_interval_with_0_shows_no_difference(ends: tuple[float, float]) -> None:
    told = _told(_bench(-0.033, *ends, batches=(1, 8)))
    assert "a call takes 75 % less at batch 8 (against openvino); no difference is shown at batch 1 (saved: " in told
    assert "% more" not in told
    alone = _told(_bench(-0.033, -0.208, 0.019))
    assert "in the same rounds, no difference is shown at batch 1 (saved: −20.8 to 1.9 %; against openvino)." in alone
    assert "−3.3 %" in alone


def test_medians_that_disagree_with_the_ratios_are_told() -> None:
    """Of 0.0451 and 0.1 ms the medians save 55 %, the rounds' ratios 24.2 to 38.6 %."""
    record = _bench(0.287, 0.242, 0.386, batches=(4, 8))
    _row(record, "ticketry").update(seconds=0.0451e-3, low=0.04e-3, high=0.05e-3)
    _row(record, "openvino").update(seconds=0.1e-3, low=0.09e-3, high=0.11e-3)
    told = _told(record)
    assert "Times varied a lot (batch 4), as they do beside other work" in told
    assert "by which a call takes 55 % less at batch 4. Measure again" in told


def test_quartiles_far_apart_are_told() -> None:
    record = _bench(0.75, 0.7, 0.8)
    _row(record, "openvino").update(low=0.0004, high=0.00081)
    told = _told(record)
    assert "Times varied a lot (batch 1)" in told
    assert "by which a call takes" not in told
    record = _bench(0.75, 0.7, 0.8)
    _row(record, "eager").update(low=0.0001, high=0.002)
    assert "varied" not in _told(record), "it is not compared with"


def test_layers_show_what_they_save() -> None:
    record = bench_record(batches=(1,))
    for row in record["layers"]:
        row["dense_seconds"] = 4 * row["seconds"]
    assert "<td>75 %</td>" in _told(record)
    for row in record["layers"]:
        del row["dense_seconds"]
    assert "<td>75 %</td>" not in _told(record)
