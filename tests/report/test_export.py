"""Exported files: the data read back are the records', the figures are whole, the same records give the same bytes."""

from __future__ import annotations

import csv
import re
import struct
from xml.etree import ElementTree

import numpy
import pytest

from ticketry.report import exporting
from ticketry.report.exporting import export


def _read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, full_record, make_verify, make_stability, make_bench):
    """Every SVG is the first one, and so is every PNG and PDF: drawing them takes seconds."""
    folder = tmp_path_factory.mktemp("export") / "new"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_svg", "to_png", "to_pdf"):
            patch.setattr(exporting, name, first_of(getattr(exporting, name)))
        files = export(full_record, folder, [make_verify(), make_stability(), make_bench(), make_bench(curves=True)])
    return folder, files


def first_of(draw):
    """Return a function that calls another once, and gives what that returned ever after."""
    found = []
    return lambda *figure: found[0] if found else found.append(draw(*figure)) or found[0]


def test_all_files_are_there_and_named(exported):
    folder, files = exported
    assert sorted(files) == sorted(folder.iterdir())
    figures = {
        *("metric-by-density", "density-by-layer", "first-layer", "metric-by-cost", "verify-1-differences"),
        *("density-over-training", "gate-histograms", "verify-1-seeds"),
        *("stability-1-stability-by-rewind-step", "stability-1-error-barriers"),
        *("saved-1-time-by-engine", "saved-2-time-by-density"),
    }
    tables = {"points", "summary", "rounds", "verdicts", "verify", "seeds", "stability", "barriers"}
    tables |= {"engines", "time-by-density"}
    names = {f"{name}.{kind}" for name in figures for kind in ("svg", "png", "pdf")}
    names |= {f"{name}.csv" for name in tables} | {"results.tex", "verdicts.tex"}
    assert {path.name for path in files} == names


def test_figures_are_whole(exported):
    for path in exported[1]:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        if path.suffix == ".pdf":
            data = path.read_bytes()
            assert data.startswith(b"%PDF-")
            assert data.rstrip().endswith(b"%%EOF")
            assert b"CreationDate" not in data
        if path.suffix == ".png":
            data = path.read_bytes()
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert data[-8:-4] == b"IEND"
            assert struct.unpack(">I", data[16:20])[0] == 1720  # twice the 860 pixels on the page


def test_points_read_back_are_the_records(exported, full_record):
    rows = _read(exported[0] / "points.csv")
    assert len(rows) == len(full_record["points"])
    for row, point in zip(rows, full_record["points"], strict=True):
        assert (row["run"], row["role"], row["key"]) == (full_record["run"], point["role"], point["key"])
        for name in ("replicate", "level", "steps", "budget"):
            assert int(row[name]) == point[name]
        assert (float(row["density"]), float(row["seconds"])) == (point["density"], point["seconds"])
        assert float(row["test"]) == point["test"]["accuracy"]
        assert float(row["validation"]) == point["validation"]["accuracy"]


def test_summaries_are_those_of_numpy(exported, full_record):
    for row in _read(exported[0] / "summary.csv"):
        values = [
            point["test"]["accuracy"]
            for point in full_record["points"]
            if (point["role"], point["level"]) == (row["role"], int(row["level"]))
        ]
        assert float(row["mean"]) == pytest.approx(numpy.mean(values))
        assert float(row["sd"]) == pytest.approx(numpy.std(values, ddof=1))
        assert (float(row["low"]) + float(row["high"])) / 2 == pytest.approx(float(row["mean"]))


def test_verdicts_read_back(exported, full_record):
    rows = _read(exported[0] / "verdicts.csv")
    for row, one in zip(rows, full_record["verdicts"], strict=True):
        assert (int(row["level"]), row["verdict"]) == (one["level"], one["verdict"])
        assert (float(row["difference"]), float(row["p_holm"])) == (one["difference"], one["p_holm"])
        assert [row["low"], row["high"]] == ([str(end) for end in one["interval"]] if one["interval"] else ["", ""])


def tabulars(text):
    """The tables of a LaTeX file as rows of plain cells, by a reader that knows booktabs and the escapes used here."""
    plain = {r"\%": "%", r"\_": "_", r"\&": "&", r"$\pm$": "±", "$-$": "−", r"\textgreater{}": ">", "--": "–"}
    found = []
    for table in text.split(r"\begin{tabular}")[1:]:
        body = table.partition(r"\end{tabular}")[0]
        columns = body.partition("}")[0].lstrip("{")
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        rows = []
        for line in lines:
            cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
            for one, other in plain.items():
                cells = [cell.replace(one, other) for cell in cells]
            rows.append(cells)
        assert {len(row) for row in rows} == {len(columns)}
        found.append(rows)
    return found


def test_latex_tables_hold_the_records_numbers(exported, full_record):
    ((head, dense, *levels),) = tabulars((exported[0] / "results.tex").read_text())
    assert head[:2] == ["weights (%)", "ticket"]
    for row, role in [(dense, "dense"), *((row, "ticket") for row in levels)]:
        at = [p for p in full_record["points"] if p["role"] == role and f"{100 * p['density']:.1f}" == row[0]]
        values = [point["test"]["accuracy"] for point in at]
        mean, _, sd = row[1].partition(" ± ")
        assert float(mean) == pytest.approx(numpy.mean(values), abs=0.051)
        assert sd == f"{numpy.std(values, ddof=1):.{len(mean.partition('.')[2])}f} ({len(values)})"
    assert len(levels) == len(full_record["verdicts"])
    assert len(head) == 2 + 3  # and as many controls
    ((_, *rows),) = tabulars((exported[0] / "verdicts.tex").read_text())
    assert [row[-1] for row in rows] == [one["verdict"] for one in full_record["verdicts"]]
    assert [float(row[2].replace("−", "-")) for row in rows] == pytest.approx(
        [one["difference"] for one in full_record["verdicts"]], abs=0.051
    )


def test_speed_reads_back(exported, make_bench):
    rows = _read(exported[0] / "engines.csv")
    expected = [(one["batch"], row) for one in make_bench()["comparisons"] for row in one["times"]]
    assert len(rows) == len(expected)
    for row, (batch, time) in zip(rows, expected, strict=True):
        assert (int(row["batch"]), row["engine"], row["not_timed"]) == (batch, time["engine"], time["why"])
        assert row["seconds"] == ("" if time["seconds"] is None else repr(time["seconds"]))
        assert bool(row["saved"]) == (row["engine"] == "ticketry")
    points = _read(exported[0] / "time-by-density.csv")
    assert [float(row["density"]) for row in points] == [1.0, 0.5, 0.1, 0.02] * 3


def test_evidence_reads_back(exported, make_verify, make_stability):
    verify, study = make_verify(), make_stability()
    rows = _read(exported[0] / "verify.csv")
    assert [row["role"] for row in rows] == [*(one["role"] for one in verify["comparisons"]), "noise"]
    assert [float(row["mean"]) for row in rows[:-1]] == [one["mean"] for one in verify["comparisons"]]
    seeds = _read(exported[0] / "seeds.csv")
    expected = [value for one in (*verify["networks"], *verify["references"]) for value in one["values"]]
    assert [float(row["test"]) for row in seeds] == expected
    rows = _read(exported[0] / "stability.csv")
    for row, one in zip(rows, study["rows"], strict=True):
        assert (int(row["step"]), row["role"], float(row["test"])) == (one["step"], one["role"], one["value"])
        assert row["pruning_l2"] == ("" if one["pruning"] is None else str(one["pruning"]["l2"]))
        assert float(row["data_order_angle"]) == one["data_order"]["angle"]
    barriers = _read(exported[0] / "barriers.csv")
    expected = [error for one in study["rows"] for curve in one["barriers"] for error in curve["errors"]]
    assert [float(row["error"]) for row in barriers] == expected


@pytest.mark.slow
def test_several_runs_and_names_with_commas(make_record, tmp_path):
    runs = [make_record(levels=2, replicates=1, seed=seed) for seed in (0, 1)]
    runs[0]["run"], runs[1]["run"] = 'a, "b"\nc', "=SUM(1)"
    names = {path.name for path in export(runs, tmp_path)}
    assert {"comparison-metric-by-density.svg", "run-1-metric-by-cost.png", "run-2-density-by-layer.svg"} <= names
    assert {row["run"] for row in _read(tmp_path / "points.csv")} == {'a, "b"\nc', "'=SUM(1)"}
