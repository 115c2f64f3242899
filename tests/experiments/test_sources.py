"""A run is of the source that it was searched by: where that is not the library's own and changes, so does the run."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from installed import site
from ticketry.errors import TicketError
from ticketry.evidence.settings import VerifySettings
from ticketry.experiments.options import LabOptions
from ticketry.experiments.reproduce.blocks import finished_blocks
from ticketry.experiments.reproduce.campaign import reproduce
from ticketry.experiments.reproduce.campaign_file import read_campaign
from ticketry.experiments.request import build_request
from ticketry.experiments.verify import _procedure_verification_name, read_search
from ticketry.lab.store.paths import Paths
from ticketry.search import Method

__all__ = ["site"]  # a fixture

SCORE = '''
def largest(model, scope, *, batches=None, loss=None, seed=0):
    """Of weights."""
    return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}
'''
METHOD = '''"""A method of one's own."""
from ticketry.search.oneshot import Settings, search as once

def search(lab, task, recipe, settings, seeds):
    yield from once(lab, task, recipe, settings, seeds)
'''
KIND = '''
from ticketry.core.gates import Stochastic

class Mine(Stochastic):
    """Like those of Louizos."""
    name = "mine"
'''
CONTROL = '''
from ticketry.evidence import Control

class Same(Control):
    """The ticket's weights."""
    def weights(self, weights, ticket, seed):
        return {name: -weights[name] for name in ticket}
'''
FILES = {"own_score": SCORE, "own_method": METHOD, "own_kind": KIND, "own_control": CONTROL}
QUICK: dict[str, Any] = {"recipe": {"length": "8it"}, "replicates": 1, "workers": 0}


@pytest.fixture
def own(site: Path) -> Path:
    for name, text in FILES.items():
        (site / f"{name}.py").write_text(text)
    return site


def change(folder: Path, module: str, old: str = "", new: str = "") -> None:
    """Another text in the module's file, as another process finds it."""
    file = folder / f"{module}.py"
    text = file.read_text()
    file.write_text(text.replace(old, new) if old else text + "\n# changed\n")
    sys.modules.pop(module, None)
    importlib.invalidate_caches()


REQUESTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "own_score": ("oneshot", {"score": "own_score:largest"}, {}),
    "own_method": ("own_method", {}, {}),
    "own_kind": ("continuous", {"kind": "own_kind:Mine", "rounds": 1}, {}),
    "own_control": ("oneshot", {}, {"controls": "own_control:Same"}),
}


def asked(module: str) -> Any:
    name, settings, more = REQUESTS[module]
    method = tk.search.method(f"{name}:search" if name == "own_method" else name)
    return build_request(method, "digits", method.Settings(**settings), **{"controls": (), **more})


@pytest.mark.parametrize("module", FILES)
def test_a_run_of_changed_source_has_another_name(own: Path, module: str) -> None:
    before = {each: asked(each).name for each in FILES}
    assert before == {each: asked(each).name for each in FILES}
    request = asked(module)
    assert request.name == before[module]
    change(own, module)
    assert request.name == before[module] != replace(request).name, "a run keeps its name while it is carried out"
    after = {each: asked(each).name for each in FILES}
    assert {each for each in FILES if before[each] != after[each]} == {module}


def test_what_is_built_in_has_no_sources() -> None:
    for name in tk.search.METHODS.built_in:
        method = tk.search.method(name)
        request = build_request(method, "digits", method.Settings())
        assert request.sources == {}
        assert "sources" not in request.describe()


def test_a_method_that_is_made_in_python_has_a_source_too(own: Path) -> None:
    names = []
    for _ in range(2):
        import own_method

        method = Method.of("mine", own_method)
        names.append(build_request(method, "digits", method.Settings(), controls=()).name)
        change(own, "own_method")
    assert names[0] != names[1]
    without_file: dict[str, Any] = {"__name__": "a_prompt"}  # as in a notebook
    exec(METHOD, without_file)
    method = replace(tk.search.method("oneshot"), name="mine", search=without_file["search"])
    assert build_request(method, "digits", method.Settings()).sources == {}


CAMPAIGN = """
title = "One's own score"
[scales.demo]
interim = [2]
[scales.demo.base]
task = "digits"
recipe = { length = "8it" }
[scales.demo.runs.own]
method = "oneshot"
settings = { density = 0.2, score = "own_score:largest" }
[scales.demo.runs.theirs]
method = "oneshot"
settings = { density = 0.2 }
[claims.same]
statement = "It is no worse."
a = { run = "own" }
b = { run = "theirs" }
density = 0.2
above = -50.0
margin = 40
"""


def test_a_campaign_does_not_answer_from_results_of_other_source(own: Path, tmp_path: Path) -> None:
    (file := tmp_path / "own.toml").write_text(CAMPAIGN)
    paths = Paths(tmp_path / "store")
    campaign = read_campaign(file, "demo", trust=True)
    reproduce(campaign, LabOptions(store=paths.root, workers=0))
    assert len(list(finished_blocks(campaign, "own", paths))) == 1
    change(own, "own_score", "abs()", "abs().neg()")
    campaign = read_campaign(file, "demo", trust=True)
    assert list(finished_blocks(campaign, "own", paths)) == []
    assert len(list(finished_blocks(campaign, "theirs", paths))) == 1


def test_the_earlier_run_keeps_its_folder_and_its_evidence(own: Path, tmp_path: Path) -> None:
    def search() -> Any:
        return tk.run("oneshot", score="own_score:largest", density=0.3, controls=(), store=tmp_path / "store", **QUICK)

    first = search()
    assert first.record.sources == {"score": tk.score.source_of("own_score:largest")}
    settings = VerifySettings(about="procedure", seeds=2, controls=("none",), references=False)
    verified = first.verify(settings, density=0.3)
    assert verified is not None
    assert verified.run == first.name
    kept = first.tickets[0].load().mask
    asked = read_search(first.tickets[0].load(), trust=True)
    assert _procedure_verification_name(asked, 1, settings) == verified.name

    change(own, "own_score", "abs()", "abs().neg()")
    second = search()
    assert second.name != first.name
    assert first.tickets[0].load().mask == kept != second.tickets[0].load().mask
    assert json.loads((second.path / "run.json").read_text())["sources"] == second.record.sources
    with pytest.raises(TicketError, match=r"the source of its score has changed since .* was found"):
        read_search(first.tickets[0].load(), trust=True)
    assert read_search(second.tickets[0].load(), trust=True).sources == second.record.sources
