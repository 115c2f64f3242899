"""Verdicts about procedures, as users ask for them: of every method, from runs and tickets, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from made_records import verify_record
from search.every_method import METHODS
from ticketry.errors import TicketError, TrustError, UsageError
from ticketry.experiments.run import Run
from ticketry.experiments.run_file import format_run_file
from ticketry.experiments.verify import build_procedure, read_search
from ticketry.lab.search_result import Seeds
from ticketry.records.evidence import VerifyRecord, read_evidence
from ticketry.records.schema import as_json

RECIPE = {"length": "8it"}
OWN: dict[str, dict[str, Any]] = {
    "acdc": {"warmup": "1it", "phase": "2it", "end": "5it"},
    "stochastic": {"rewind": "10%"},
    "early": {"every": "25%"},
    "decorators": {"rounds": 2},
}
QUICK: dict[str, Any] = {"seeds": 2, "references": False, "workers": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("procedures") / "store"


@pytest.fixture(scope="module")
def run(store: Path) -> Run:
    """One-shot pruning to two densities, two replicates from seed 7."""
    options: dict[str, Any] = {"density": (0.5, 0.2), "recipe": RECIPE, "store": store, "workers": 0}
    return tk.run("oneshot", replicates=2, controls="shuffled", seeds=7, **options)


def test_a_run_that_keeps_final_weights_gets_a_verdict_about_its_procedure(run: Run, store: Path) -> None:
    made = tk.verify(run.name, density=0.2, store=store, **QUICK)
    assert (made.about, made.claims_of, made.n, made.replicate) == ("procedure", "this procedure", 2, None)
    assert (made.run, made.level, round(made.density, 3)) == (run.name, 2, 0.2)
    assert [one.role for one in made.networks] == ["ticket", "dense", "shuffled", "uniform", "erk"]
    assert {one.budget for one in made.networks} == {16}
    assert (made.settings["density"], made.recipe["length"]) == ([0.5, 0.2], "8it")
    assert made.noise is None
    again = tk.verify(run.tickets[1], store=store, **QUICK)  # the same procedure, named by a ticket
    assert (again.name, again.cost) == (made.name, made.cost)
    assert read_evidence(as_json(made)) == made


def test_the_search_of_a_ticket_is_the_run_s(run: Run) -> None:
    for ticket in run.tickets:
        found = read_search(ticket.load())
        asked = {**run.request.describe(), "controls": []}
        assert format_run_file(found.describe(), found.task.spec) == format_run_file(asked, run.request.task.spec)


def test_a_budget_s_recipe_is_told_by_the_ticket(tmp_path: Path) -> None:
    made = tk.run("oneshot", density=0.5, equal_cost="steps", recipe=RECIPE, replicates=1, store=tmp_path, workers=0)
    saved = made.tickets[0].load()
    assert saved.info["recipe"]["length"] != "8it"
    assert read_search(saved).recipe == made.request.recipe
    older = tk.Ticket(saved.mask, saved.start, {k: v for k, v in saved.info.items() if k != "search"})
    with pytest.raises(TicketError, match="older ticketry, and lacks the recipe"):
        read_search(older)


def test_one_density_of_several_is_searched_for_as_if_alone(run: Run, store: Path) -> None:
    with tk.Lab(store) as lab:
        procedure = build_procedure(lab, read_search(run.tickets[1].load()), 2)
        assert (procedure.settings.targets, procedure.level) == ((0.2,), 1)
        assert procedure.seeds == Seeds.of(7)


def test_what_a_ticket_names_is_not_run(run: Run) -> None:
    saved = run.tickets[0].load()

    def with_info(**changed: Any) -> tk.Ticket:
        return tk.Ticket(saved.mask, saved.start, {**saved.info, **changed})

    with pytest.raises(TrustError, match="names the search method 'os:system'"):
        read_search(with_info(method="os:system"))
    with pytest.raises(TrustError, match="names the setting score 'os:system'") as told:
        read_search(with_info(settings={**saved.info["settings"], "score": "os:system"}))
    assert "--score" not in str(told.value), "there is no such option where a ticket is judged"
    other = {**saved.info["task"], "spec": {"name": "os:system", "model": None, "options": {}}}
    with pytest.raises(TrustError, match="names the task 'os:system'"):
        read_search(with_info(task=other))
    with pytest.raises(TicketError, match=r"another task or network: .*name 'digits'"):
        read_search(saved, tk.task("mnist"))
    with pytest.raises(UsageError, match="was given its structure after its search"):
        read_search(with_info(structure={"kind": "regroup", "of": "0" * 64}))
    with pytest.raises(TicketError, match="lacks its seeds"):
        read_search(tk.Ticket(saved.mask, saved.start, {k: v for k, v in saved.info.items() if k != "seeds"}))
    with pytest.raises(TicketError, match=r"info.settings is text, not an object"):
        read_search(with_info(settings="all"))


def test_words_of_the_command_line(run: Run, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", run.name, "--store", str(store), "--workers", "0", "--seeds", "2", "--controls", "erk"]
    code, _, err = call(capsys, *words)
    assert (code, "name one with --density; there are 0.5, 0.2" in err) in [(2, True), (0, False)]
    code, out, _ = call(capsys, *words, "--density", "0.5")
    assert (code, f"procedure oneshot, the whole search with every seed, as in {run.name}" in out) == (0, True)
    assert "(this procedure; claim: wins" in out
    code, out, _ = call(capsys, *words, "--density", "0.5", "--json")
    assert (code, json.loads(out)["about"]) == (0, "procedure")
    code, _, err = call(capsys, *words, "--density", "0.01")
    assert (code, "has no tickets of density 0.01; there are 0.5, 0.2" in err) == (2, True)
    code, _, err = call(capsys, *words, "--density", "0.5", "--about", "ticket")
    assert (code, "keeps trained weights (retrain finetune)" in err) == (2, True)
    ticket = str(run.tickets[0].path)
    code, _, err = call(capsys, "verify", ticket, "--store", str(store), "--density", "0.5")
    assert (code, "density needs a run" in err) == (2, True)


def test_a_rewound_ticket_s_procedure_on_request(tmp_path: Path) -> None:
    options: dict[str, Any] = {"densities": (0.5,), "recipe": RECIPE, "store": tmp_path, "workers": 0}
    made = tk.run("iterative", replicates=1, controls=(), **options)
    own = made.verify(tk.evidence.VerifySettings(seeds=1, noise=False, references=False, controls=("none",)))
    assert own is not None
    assert (own.about, own.replicate) == ("ticket", 0)
    other = made.verify(tk.evidence.VerifySettings(about="procedure", seeds=1, references=False))
    assert other is not None
    assert (other.about, other.level) == ("procedure", 1)
    assert "this procedure" in made._repr_html_()


def test_records_of_before_say_what_they_are_about() -> None:
    record = verify_record()
    assert "about" not in record
    old = read_evidence(record)
    assert isinstance(old, VerifyRecord)
    assert old.claims_of == "this ticket"


def test_levels_of_a_run_are_about_its_procedure(run: Run) -> None:
    told = run.record.verdict_error
    assert (told.startswith("unequal budgets"), "ticketry verify RUN" in told) == (True, True)
    options: dict[str, Any] = {"density": 0.5, "recipe": RECIPE, "store": run.options.store, "workers": 0}
    made = tk.run("gmp", replicates=2, controls="shuffled", **options)
    assert [one.claims_of for one in made.verdicts] == ["this procedure"]


def test_of_several_splits_it_has_those_that_the_run_has_not(tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 7},{i % 5},{(i % 7) * (i % 5)}" for i in range(60))
    table = tmp_path / "table.csv"
    table.write_text(f"a,b,c\n{rows}")
    task = tk.task(f"table:{table}", model="mlp-8", options={"target": "c"})
    options: dict[str, Any] = {"density": 0.5, "distribution": "erk", "recipe": RECIPE, "workers": 0}
    options["store"] = tmp_path / "store"
    made = tk.run("gradual", task, replicates=2, controls=(), **options)
    with pytest.raises(TrustError, match="names the task 'table:"):
        read_search(made.tickets[1].load())
    found = read_search(made.tickets[1].load(), trust=True)
    with tk.Lab(tmp_path / "store") as lab:
        splits = [build_procedure(lab, found, 1).task_of(number).key()["split"] for number in range(3)]
    assert splits == [2, 3, 4]


def test_settings_that_a_method_fixes_are_not_stored_and_may_be_there(run: Run) -> None:
    settings = tk.search.method("decorators").Settings(density=0.8)
    stored = replace(run.request, method=tk.search.method("decorators"), settings=settings).stored_settings
    fixed = {
        "flops": [],
        "time": [],
        "base": "eager",
        "bytes": [],
        "profile": "",
        "measured": False,
        "unweighed": False,
    }
    assert stored["density"] == (0.8,)
    assert not fixed.keys() & stored.keys()
    saved = run.tickets[0].load()

    def read(settings: dict[str, Any]) -> Any:
        info = {**saved.info, "method": "decorators", "settings": settings}
        return read_search(tk.Ticket(saved.mask, saved.start, info)).settings

    assert read(stored) == read({**stored, **fixed}) == settings
    with pytest.raises(UsageError, match="takes no 'base'"):
        read({**stored, "base": "engine"})


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "decorators"])
def test_every_method_gets_a_verdict_about_its_procedure(method: str, tmp_path: Path) -> None:
    """Its ticket searched for alone is that of the run's settings, and what it is compared with has as many steps."""
    settings = {**METHODS.get(method, {"density": (0.5,)}), **OWN.get(method, {})}
    task = tk.task("digits", model="resnet-20@0.25" if method == "decorators" else None)
    options: dict[str, Any] = {"recipe": RECIPE, "store": tmp_path, "workers": 0, **settings}
    made = tk.run(method, task, replicates=1, controls=(), **options)
    level = max(ticket.level for ticket in made.tickets)
    last = next(ticket for ticket in made.tickets if ticket.level == level)
    found = tk.verify(last, about="procedure", store=tmp_path, **QUICK)
    assert found.verdict in ("wins", "matches", "loses", "undecided")
    roles = {one.role for one in found.networks}
    assert {"ticket", "dense"} < roles
    assert roles >= ({"shuffled", "random_prune"} if method == "decorators" else {"shuffled", "uniform", "erk"})
    assert len({one.budget for one in found.networks}) == 1
    with tk.Lab(tmp_path) as lab:
        procedure = build_procedure(lab, made.request, level)
        seeds = procedure.fresh_seeds(0)
        (whole,) = made.request.method(lab, task, made.request.settings, recipe=made.request.recipe, seeds=seeds)
        alone = procedure.replicate(0).ticket
        assert alone.result.segment.key == whole[-1].result.segment.key
