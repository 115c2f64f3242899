"""Methods by the names that papers use: what they set, and where the name is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.cli import main
from ticketry.errors import UsageError
from ticketry.report.tables.results import Results
from ticketry.report.tables.rows import trained_network_rows
from ticketry.search import ALIASES, METHODS, method, method_name_for_lists

PAPERS = {
    "imp": "iterative",
    "lth": "iterative --rewind 0",
    "omp": "oneshot",
    "gmp": "gradual",
    "rigl": "dynamic --grow gradient",
    "set": "dynamic --grow random",
    "cs": "continuous",
    "snip": "early --when 0 --iterations 1 --score snip",
    "snap": "early --when 0 --iterations 1 --structure channels --score snip",
    "grasp": "early --when 0 --iterations 1 --score grasp",
    "synflow": "early --when 0 --iterations 100 --score synflow --schedule exponential",
    "crop": "early --when 0 --iterations 1 --score crop",
    "cropit": "early --when 0 --iterations 7 --score crop",
    "earlycrop": "early --when detect --score crop",
    "earlybird": "early --when detect --detector masks --score slimming --structure channels",
    "random": "early --when 0 --iterations 1 --score random",
}


def test_they_are_those_of_the_papers() -> None:
    assert {name: alias.command_line_words for name, alias in ALIASES.items()} == PAPERS
    assert not set(ALIASES) & set(METHODS.built_in)


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_is_its_method_with_other_defaults(name: str) -> None:
    alias, found = ALIASES[name], method(name)
    plain = method(alias.method)
    assert (found.name, found.alias, found.search) == (plain.name, name, plain.search)
    assert issubclass(found.Settings, plain.Settings)
    assert [one.name for one in fields(found.Settings)] == [one.name for one in fields(plain.Settings)]
    assert asdict(found.Settings()) == asdict(plain.Settings(**alias.settings))
    assert asdict(found.Settings()) == {**asdict(plain.Settings()), **alias.settings}
    assert found.title.startswith(alias.stands_for)


def test_the_name_holds_while_the_settings_do() -> None:
    snip = method("snip")
    assert method_name_for_lists("early", "snip", snip.Settings(density=(0.1,), batches=9)) == "snip"
    assert method_name_for_lists("early", "snip", snip.Settings(iterations=5)) == "early"
    assert method_name_for_lists("early", "snip", snip.Settings(structure="channels")) == "early"
    assert method_name_for_lists("early", "", snip.Settings()) == "early"
    assert method_name_for_lists("iterative", "imp", method("imp").Settings(rewind="3%")) == "imp"
    with pytest.raises(UsageError, match=r"search method 'snips' is not known: .* did you mean snip"):
        method("snips")


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


FAST = ("--task", "digits", "--replicates", "1", "--workers", "0", "--controls", "none", "--recipe.length", "4it")


def test_a_run_by_an_alias_is_that_of_its_method_and_shows_the_alias(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_alias = answer(capsys, "search", "snip", "--density", "0.2", *FAST, "--json")
    options: dict[str, Any] = {"replicates": 1, "controls": (), "recipe": {"length": "4it"}, "workers": 0}
    by_method = tk.run("early", when="0", iterations=1, score="snip", density=0.2, **options)
    assert by_method.now["steps_trained"] == 0, "the same trainings"
    assert by_alias["run"].startswith("snip-digits-")
    assert by_method.name == f"early-{by_alias['run']}", "the same digest"
    folder = Path(by_alias["report"]).parent
    record = json.loads((folder / "run.json").read_text())
    assert (record["method"], record["alias"], record["settings"]["score"]) == ("early", "snip", "snip")
    assert 'method = "snip"' in (folder / "run.toml").read_text()
    assert "SNIP (Lee et al. 2019)" in (folder / "report.html").read_text()

    run = tk.run("snip", density=0.2, **options)
    assert (run.name, run.now["steps_trained"]) == (by_alias["run"], 0)
    assert {row["method"] for row in trained_network_rows([Results(run.record)])} == {"snip"}
    listed = {row["run"]: row["method"] for row in answer(capsys, "list", "runs", "--json")}
    assert (listed[by_alias["run"]], listed[by_method.name]) == ("snip", "early")
    changed = tk.run("snip", density=0.2, iterations=3, **options)
    assert changed.name.startswith("early-snip-digits-"), "in three cuts it is no longer what the paper calls SNIP"
    assert (changed.record.alias, changed.record.title) == ("", method("early").title)


def test_lists_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answer(capsys, "list", "methods", "--json")
    told = {alias: one["words"] for row in rows for alias, one in row["aliases"].items()}
    assert told == PAPERS
    assert main(["list", "methods"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, words in PAPERS.items():
        assert f"{ALIASES[name].stands_for}: {words}" in text
