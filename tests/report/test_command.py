"""`ticketry report` on a store of made-up runs: which runs it shows, where it writes, what it says."""

from __future__ import annotations

import json

import pytest

from ticketry.cli import main
from ticketry.lab.store.files import write_with_digest
from ticketry.report.subject import read_evidence_about_runs


@pytest.fixture
def store(tmp_path, make_record, make_verify, dots):
    """Three finished runs, the newest last by name, and a verification of the first."""
    folder = tmp_path / "store"
    (folder / "evidence").mkdir(parents=True)
    (folder / "store.json").write_text("{}")
    for day, name in enumerate(("one-aa", "two-ab", "two-ac"), start=1):
        record = make_record(levels=2, replicates=2, seed=day)
        record["run"], record["environment"]["date"] = name, f"2026-11-0{day}"
        path = folder / "runs" / name / "run.json"
        path.parent.mkdir(parents=True)
        write_with_digest(path, record)
    write_with_digest(folder / "evidence" / "verify-1.json", {**make_verify(), "run": "one-aa"})
    return folder


def _call(capsys, *words):
    code = main(["report", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_newest_run_by_default(store, capsys):
    code, out, _ = _call(capsys, "--store", store, "--json")
    (written,) = json.loads(out)["reports"]
    assert (code, written["run"], written["evidence"]) == (0, "two-ac", [])
    assert written["report"] == str(store / "runs" / "two-ac" / "report.html")
    assert "two-ac" in (store / "runs" / "two-ac" / "report.html").read_text()


def test_several_runs_on_one_page_with_their_evidence(store, capsys, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = _call(capsys, "two-ac", "one", "one-aa", "--store", store, "--output", page, "--json")
    (written,) = json.loads(out)["reports"]
    assert (code, written["runs"], written["report"]) == (0, ["two-ac", "one-aa"], str(page))
    assert written["evidence"] == [record["name"] for record in read_evidence_about_runs(store, ["one-aa"])] != []
    assert "Verification" in page.read_text()


@pytest.mark.slow
def test_all_runs_and_their_files(store, capsys, tmp_path):
    code, out, _ = _call(capsys, "--all", "--store", store, "--export", tmp_path / "files", "--figures")
    assert code == 0
    assert f"report  {store / 'report.html'}" in out
    for name in ("one-aa", "two-ab", "two-ac"):
        assert name in out
        assert (store / "runs" / name / "metric-by-density.svg").is_file()
    assert f"export  {tmp_path / 'files' / 'points.csv'}" in out
    assert (tmp_path / "files" / "verify-1-differences.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["two"], 2, "2 runs have a name that begins with 'two'"),
        (["three"], 1, "no run is called 'three'; there are one-aa, two-ab, two-ac"),
        (["one", "--all"], 2, "name runs or give --all"),
    ],
)
def test_what_is_meant_must_be_clear(store, capsys, words, code, message):
    found, _, err = _call(capsys, *words, "--store", store)
    assert found == code
    assert message in err


def test_of_many_runs_a_message_names_the_newest(tmp_path, capsys):
    (tmp_path / "store.json").write_text("{}")
    for number in range(40):
        path = tmp_path / "runs" / f"run-{number:02d}-aa" / "run.json"
        path.parent.mkdir(parents=True)
        write_with_digest(path, {"environment": {"date": f"2026-11-{number:02d}"}})
    code, _, err = _call(capsys, "run-1", "--store", tmp_path)
    assert code == 2
    assert "10 runs have a name that begins with 'run-1'" in err
    assert "run-19-aa  (its record cannot be read)" in err
    code, _, err = _call(capsys, "run-07-ab", "--store", tmp_path)
    assert code == 1
    assert "no run is called 'run-07-ab'; did you mean run-07-aa" in err
    assert "run-39-aa and 32 older ones" in err


@pytest.mark.parametrize("words", [[], ["--all"]])
def test_a_store_without_runs(tmp_path, capsys, words):
    (tmp_path / "store.json").write_text("{}")
    code, _, err = _call(capsys, *words, "--store", tmp_path)
    assert code == 1
    assert "no finished run" in err
