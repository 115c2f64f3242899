"""ticketry verify, ticketry stability and search --verify, as a user types them."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert

import ticketry as tk
from cli.calling import call, printed
from made_records import verify_record
from ticketry.cli.results import summarise_verification
from ticketry.records.evidence import VerifyRecord
from ticketry.records.schema import as_json
from ticketry.report.wording import MINUS

SEARCH = ["--rate", "0.5", "--levels", "2", "--recipe.length", "20it", "--workers", "0", "--controls", "shuffled"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    store = tmp_path_factory.mktemp("evidence") / "store"
    words = ["search", "imp", *SEARCH, "--replicates", "2", "--store", str(store), "--verify", "--json"]
    with pytest.MonkeyPatch.context() as patch:  # two seeds in place of up to ten
        patch.setattr("ticketry.experiments.run.VerifySettings", partial(tk.evidence.VerifySettings, seeds=2))
        return store, json.loads(printed(*words))


def test_a_search_verifies_its_sparsest_winner(searched: tuple[Path, dict[str, Any]]) -> None:
    store, result = searched
    record = json.loads(next((store / "runs").glob("*/run.json")).read_text())
    assert "verification" in result, f"nothing won on the validation split: {record['points']}"
    verification = result["verification"]
    assert verification["run"] == result["run"]
    assert verification["verdict"] in ("wins", "matches", "loses", "undecided")
    assert verification["ticket"] in {ticket["path"] for ticket in result["tickets"]}
    assert verification["name"] in Path(result["report"]).read_text(encoding="utf-8")


def test_verify_tells_and_prints_json(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, result = searched
    ticket = result["tickets"][1]["path"]
    words = ["verify", ticket, "--store", str(store), "--seeds", "2", "--workers", "0", "--controls", "shuffled"]
    code, out, err = call(capsys, *words)
    assert code == 0
    assert "[6 trained" in err or "trained" in err
    assert out.splitlines()[0] == f"ticket   {ticket}"
    assert "confidence 95 %, 2 seeds" in out
    code, out, _ = call(capsys, *words, "--json")
    record = json.loads(out)
    assert (code, record["kind"], record["n"]) == (0, "verify", 2)
    assert {"verdict", "as_good_as_dense", "better_than_controls", "difference", "interval", "n"} <= record.keys()
    assert [network["role"] for network in record["networks"]] == ["ticket", "dense", "shuffled"]


@pytest.mark.slow
def test_verify_in_worker_processes_gives_the_same(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, result = searched
    words = ["verify", result["tickets"][1]["path"], "--seeds", "2", "--controls", "shuffled", "--json"]
    alone = json.loads(call(capsys, *words, "--store", str(store), "--workers", "0")[1])
    beside = json.loads(call(capsys, *words, "--store", str(tmp_path / "other"), "--workers", "2")[1])
    assert beside["networks"] == alone["networks"]
    assert (beside["run"], beside["cost"]["segments_trained"]) == ("", beside["cost"]["segments_distinct"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "nowhere"], "nowhere"),
        (["verify", "{ticket}", "--controls", "best"], "'best' is not known"),
        (["verify", "{ticket}", "--interim", "5,3"], "ascending"),
        (["verify", "{ticket}", "--margin", "-1"], "a margin of -1"),
        (["verify", "{ticket}", "--task", "mnist"], "another task or network"),
        (["verify", "{ticket}", "--claim", "wins", "--controls", "none"], "'wins' needs a control"),
        (["stability", "--rewinds", "soon"], "'soon' is not a point in training"),
        (["stability", "--splits", "best", "--masks", "none"], "split 'best' is not known"),
    ],
)
def test_wrong_words_are_told_without_a_traceback(
    words: list[str], told: str, searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, result = searched
    filled = [word.format(ticket=result["tickets"][0]["path"]) for word in words]
    extra = SEARCH if words[0] == "stability" else ["--workers", "0"]
    code, out, err = call(capsys, *filled, *extra, "--store", str(store))
    assert code in (1, 2)
    assert told in err
    assert "Traceback" not in err + out


@pytest.mark.slow
def test_stability_tells_and_prints_json(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, result = searched
    words = ["stability", *SEARCH, "--replicates", "2", "--rewinds", "0,50%", "--points", "3", "--store", str(store)]
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert "density 25.00 %" in out
    assert "50% (step 10)" in out
    report = Path(out.split("report   ")[1].strip())
    assert report.is_file()
    code, out, _ = call(capsys, *words, "--json")
    record = json.loads(out)
    assert (code, record["kind"]) == (0, "stability")
    assert result["run"] in record["runs"]  # rewinding to 0 is the search that was there
    assert record["cost"]["segments_trained"] < record["cost"]["segments_distinct"] < record["cost"]["segments_asked"]


def test_verdicts_of_small_numbers_are_told_in_decimals_that_show_them() -> None:
    record = convert(verify_record(), VerifyRecord)
    large = "\n".join(summarise_verification(record))
    thousandth = as_json(record)
    for part in (*thousandth["networks"], *thousandth["references"], thousandth["noise"]):
        part["values"] = [value / 1000 for value in part["values"]]
    for part in (*thousandth["comparisons"], thousandth["noise"], thousandth):
        for name in ("mean", "low", "high", "sd", "difference", "margin"):
            if part.get(name) is not None:
                part[name] /= 1000
    small = "\n".join(summarise_verification(convert(thousandth, VerifyRecord)))
    of_large, of_small = numbers_in(large), numbers_in(small)
    assert len(of_large) > 8
    assert of_small == pytest.approx([value / 1000 for value in of_large], abs=1e-12)
    exact = as_json(record) | {"margin": 0.000757713123}
    assert "margin 0.0008 " in "\n".join(summarise_verification(convert(exact, VerifyRecord)))


def numbers_in(text: str) -> list[float]:
    """Of the lines that have a network each."""
    rows = [line[29:].replace(MINUS, "-") for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    return [float(number) for row in rows for number in re.findall(r"[+-]?\d+\.\d+", row)]


def test_tickets_that_a_bundle_left_without_weights_are_told(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, result = searched
    bundle = tk.store.pack(result["run"], tmp_path / "run.tkz", store=store).path
    tk.store.unpack(bundle, store=tmp_path / "elsewhere")
    config = str(Path(result["report"]).with_name("run.toml"))
    words = ["search", "--config", config, "--store", str(tmp_path / "elsewhere"), "--workers", "0"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    tickets = len(result["tickets"])
    assert f"tickets  none in a folder ({tickets} without weights, which a bundle left out" in out
    assert "Ticket.load" not in out
