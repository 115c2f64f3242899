"""Campaign files: those of the library can be judged at every scale; wrong ones are told with file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ticketry.errors import TrustError, UsageError
from ticketry.experiments.reproduce.blocks import split_run_into_blocks
from ticketry.experiments.reproduce.campaign_file import SCALES, campaigns_at_scale, read_campaign

GOOD = """
title = "A small campaign"
paper = "nobody"

[scales.demo]
interim = [3, 5]
densities = { few = 0.1 }

[scales.demo.base]
task = "digits"
recipe = { length = "30it" }

[scales.demo.bases.other]
task = "digits"
recipe = { length = "20it" }
kernels = "sparse"
interim = [3]

[scales.demo.runs.iterative]
method = "iterative"
settings = { densities = [0.3, 0.1] }
controls = ["shuffled"]
stability = { at = ["few"], points = 5 }

[scales.demo.runs.gradual]
method = "gradual"
settings = { density = [0.3, 0.1] }

[claims.better]
statement = "Iterative pruning is better."
a = { run = "iterative" }
b = { run = "gradual" }
density = ["few", 0.3]

[claims.stable]
statement = "It has no barrier."
a = { run = "iterative" }
b = { value = 2 }
density = "few"
metric = "barrier"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "scale"), [(name, scale) for scale in SCALES for name in campaigns_at_scale(scale)])
def test_those_of_the_library_can_be_judged_once_their_runs_are_done(name: str, scale: str) -> None:
    campaign = read_campaign(Path(name), scale)
    assert campaign.claims
    assert {run for claim in campaign.claims for run in claim.runs} <= set(campaign.runs)
    assert all(claim.statement.endswith(".") for claim in campaign.claims)
    assert all(plan.at[0] >= 3 for plan in campaign.plans.values()), "three replicates at least"
    narrow = {run for run, precision in campaign.precisions.items() if precision != "fp32"}
    if name == "paper-regime":
        assert narrow in (set(), set(campaign.runs)), "one precision for all networks that are compared"
    else:
        assert narrow == {run for run in campaign.runs if scale == "cpu" and run.startswith(("language-", "tiny-"))}


def test_a_file_becomes_runs_and_a_claim_for_each_density(tmp_path: Path) -> None:
    campaign = read_campaign(written(tmp_path, GOOD), "demo")
    assert [(claim.name, claim.density) for claim in campaign.claims] == [
        ("better at 10 %", 0.1),
        ("better at 30 %", 0.3),
        ("stable", 0.1),
    ]
    assert [(claim.a.level, claim.b.level) for claim in campaign.claims] == [(2, 2), (1, 1), (2, None)]
    stable = campaign.claims[-1]
    assert (stable.b.value, stable.runs, stable.unit, stable.higher_is_better) == (2.0, ("iterative",), "%", False)
    asked = campaign.stability["iterative"]
    assert (asked.rewinds, asked.at, asked.points, asked.dense) == (("0",), (0.1,), 5, False)
    assert {plan.at for plan in campaign.plans.values()} == {(3, 5)}
    run = campaign.runs["iterative"]
    assert (run.method.name, run.recipe.length, run.controls) == ("iterative", "30it", ("shuffled",))
    assert run.planned_densities == {0.3: 1, 0.1: 2}
    assert campaign.claims[0].family == "small"
    assert campaign.claims[0].higher_is_better


OWN_METHOD = '''"""A method of one's own."""
from dataclasses import dataclass
from ticketry.search import Training

@dataclass(frozen=True, kw_only=True)
class Settings:
    """What it is told."""
    keep: tuple[float, ...] = (0.3, 0.1)
    """Fractions kept."""

def plan(settings):
    return [Training(level=level) for level, density in enumerate(settings.keep, start=1)]

def search(lab, task, recipe, settings, seeds): ...
'''


def test_claims_about_a_method_of_ones_own_name_levels_or_densities_that_its_plan_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_no_targets.py").write_text(OWN_METHOD)
    (tmp_path / "of_targets.py").write_text(OWN_METHOD.replace("level=level", "level=level, density=density"))
    text = GOOD.replace('method = "gradual"\nsettings = { density = [0.3, 0.1] }', 'method = "of_no_targets:search"')
    with pytest.raises(UsageError, match=r"none that is known beforehand. Name a level on each side .* `plan`"):
        read_campaign(written(tmp_path, text), "demo", trust=True)
    found = read_campaign(written(tmp_path, text.replace("of_no_targets", "of_targets")), "demo", trust=True)
    assert [claim.b.level for claim in found.claims if claim.name.startswith("better")] == [2, 1]
    by_level = text.replace('density = ["few", 0.3]', "")
    for run in ("iterative", "gradual"):
        by_level = by_level.replace(f'{{ run = "{run}" }}', f'{{ run = "{run}", level = 2 }}', 1)
    found = read_campaign(written(tmp_path, by_level), "demo", trust=True)
    assert [(claim.a.level, claim.b.level) for claim in found.claims if claim.name == "better"] == [(2, 2)]


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ('method = "gradual"', 'method = "graduall"', r"scales\.demo\.runs\.gradual: .*gradual"),
        ('method = "gradual"', "", r"scales\.demo\.runs\.gradual: method is missing"),
        ('density = ["few", 0.3]', "density = 0.2", r"better: .* no tickets of density 0\.2: it has 0\.3, 0\.1"),
        ('run = "gradual" }', 'run = "gradual", density = "many" }', r"^the campaign \S+: claims\.better: density"),
        ('density = ["few", 0.3]', "", r"claims\.better: ticket of iterative has several densities"),
        ('density = ["few", 0.3]', "density = [0.1, 0.1]", r"better: there are two claims called 'better at 10 %"),
        ('run = "iterative" }', 'run = "one" }', r"claims\.better: there is no run 'one': there are iterative"),
        ('run = "iterative" }', 'run = "gradual", role = "shuffled" }', r"gradual has no 'shuffled': it has ticket"),
        ('run = "iterative" }', 'run = "gradual" }', r"claims\.better: it compares ticket of gradual with itself"),
        ('statement = "Iter', 'margin = 0\nstatement = "Iter', r"claims\.better: a margin of 0"),
        ('statement = "Iter', 'confidence = 2\nstatement = "Iter', r"claims\.better: a confidence of 2"),
        ('statement = "Iter', 'metric = "beauty"\nstatement = "Iter', r"better: there is no metric 'beauty': acc"),
        ('statement = "Iter', 'statment = "Iter', r"is wrong: Object (contains unknown|missing)"),
        ("interim = [3, 5]", "interim = [5, 3]", r"scales\.demo\.interim: interim analyses at \(5, 3\)"),
        ("densities = [0.3, 0.1] }", "densitys = [0.3] }", r"runs\.iterative: .* takes no 'densitys'"),
        ('controls = ["shuffled"]', 'controls = ["shufled"]', r"scales\.demo\.runs\.iterative: .*shufled"),
        ('task = "digits"', 'task = "uci-energy"', r"differ from replicate to replicate: give its option split"),
        ("[scales.demo.runs.gradual]", '[scales.demo.runs.gradual]\ntask = "mnist"', r"of different tasks"),
        ('b = { value = 2 }', 'b = { run = "gradual" }', r"claims\.stable: barrier is not measured of gradual: give"),
        ('b = { value = 2 }', 'b = { run = "iterative", role = "shuffled" }', r"shuffled of iterative: only of"),
        ('a = { run = "iterative" }\nb = { value', 'a = { value = 3 }\nb = { value', r"both sides are numbers"),
        ('density = "few"\nmetric', 'density = 0.3\nmetric', r"not measured at density 0\.3, only at 0\.1"),
        ('at = ["few"], points = 5', "at = [0.2]", r"iterative\.stability|stability.*no tickets of density 0\.2"),
        ('at = ["few"], points = 5', "at = [2]", r"stability: at must be densities in \(0, 1\], got 2"),
        ('at = ["few"], points = 5', "points = 0", r"claims\.stable: barriers of iterative are left out"),
        ('at = ["few"], points = 5', 'rewinds = ["3%"]', r"stability: the rewind step is the run's own"),
        ('at = ["few"], points = 5', "ad = [0.1]", r"stability takes no 'ad'"),
        ("settings = { density =", "stability = { points = 5 }\nsettings = { density =", r"gradual.*: it is of"),
        ('run = "gradual" }', 'run = "gradual", level = 3 }', r"gradual has tickets of levels 1 to 2"),
        ('run = "gradual" }', 'run = "gradual", level = 1, density = 0.3 }', r"a side one or a density"),
        ('method = "gradual"', 'method = "gradual"\nbase = "of"', r"gradual: base 'of' is none .* which are other$"),
        ('method = "gradual"', 'method = "gradual"\nbase = "other"', r"iterative is judged at \(3, 5\) replicates and"),
        ("interim = [3]", "interim = [1]", r"scales\.demo\.bases\.other\.interim: interim analyses at \(1,\)"),
        ('task = "digits"', 'task = "digits"\nprecision = "auto"', r"scales\.demo\.base\.precision is wrong: .*'auto'"),
        ('task = "digits"', 'task = "digits"\nkernels = "some"', r"scales.*kernels is wrong: .*'some'"),
        ('method = "gradual"', 'method = "gradual"\nprecision = "fp32"', r"runs.* unknown field `precision`"),
        ('density = ["few", 0.3]', "density = []", r"claims.*density is wrong: .* length >= 1"),
        ('statement = "Iter', 'above = nan\nstatement = "Iter', r"claims.*above is wrong"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_file_and_key(tmp_path: Path, before: str, after: str, match: str) -> None:
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(UsageError, match=match) as told:
        read_campaign(path, "demo")
    assert str(path) in str(told.value)


FRESH = """
[scales.demo.bases.fresh]
task = "digits"
recipe = { length = "30it" }
interim = [3]
after = 5

[scales.demo.runs.iterative-again]
base = "fresh"
method = "iterative"
settings = { densities = [0.3, 0.1] }

[scales.demo.runs.gradual-again]
base = "fresh"
method = "gradual"
settings = { density = [0.3, 0.1] }

[claims.better-again]
statement = "Asked again: iterative pruning is better."
a = { run = "iterative-again" }
b = { run = "gradual-again" }
density = "few"
again = "better"
"""
THIRD = """
[claims.better-once-more]
statement = "Asked a third time."
a = { run = "iterative" }
b = { run = "gradual" }
density = "few"
again = "better-again"
"""


def test_a_claim_may_repeat_another_at_one_density_or_several(tmp_path: Path) -> None:
    def repeated(text: str) -> dict[str, str]:
        claims = read_campaign(written(tmp_path, text), "demo").claims
        return {claim.name: claim.again for claim in claims if claim.again}

    assert repeated(GOOD + FRESH) == {"better-again": "better at 10 %"}
    several = repeated(GOOD + FRESH.replace('density = "few"', "density = [0.3, 0.1]"))
    assert several["better-again at 30 %"] == "better at 30 %"
    assert several["better-again at 10 %"] == "better at 10 %"
    assert repeated(GOOD.replace('density = ["few", 0.3]', "density = [0.3]") + FRESH)["better-again"] == "better"
    block = split_run_into_blocks(
        "gradual-again", read_campaign(written(tmp_path, GOOD + FRESH), "demo").plans["gradual-again"]
    )[0]
    campaign = read_campaign(written(tmp_path, GOOD + FRESH), "demo")
    assert block.search_request(campaign).seeds == campaign.runs["iterative"].seeds.replicate(5), "the sixth and on"
    pairs = FRESH.replace("interim = [3]\n", "").replace('b = { run = "gradual-again" }', 'b = { run = "gradual" }')
    with pytest.raises(UsageError, match=r"pass over other numbers of replicates \(after\), and make no pairs"):
        read_campaign(written(tmp_path, GOOD + pairs), "demo")


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ('again = "better"', 'again = "best"', r"claims\.better-again: .*'best' \(there is none"),
        ('b = { run = "gradual-again" }\ndensity = "few"\nagain = "better"',
         'b = { value = 50 }\ndensity = "few"\nagain = "stable"', "'stable' again, of"),
        ("after = 5\n", "", r"claims.better-again: it repeats 'better at 10 %', .* after = 5 or more"),
        ("after = 5\n", "after = 1\n", r"claims.better-again: it repeats 'better at 10 %', .* after = 5 or more"),
        ("after = 5\n", "after = -1\n", "after"),
        (FRESH, FRESH + THIRD, r"better-once-more: it repeats 'better at 10 %', .* replicates 1 to 5 as"),
        ('density = ["few", 0.3]', 'density = "few"\nagain = "better-again"', r"better.*: it leads back to itself"),
    ],
)  # fmt: skip
def test_a_claim_that_cannot_be_repeated_is_told(tmp_path: Path, before: str, after: str, match: str) -> None:
    assert before in GOOD + FRESH
    text = (GOOD + FRESH).replace(before, after, 1)
    if "stable" in after:
        text = text.replace('a = { run = "iterative-again" }', 'a = { run = "iterative" }')
    with pytest.raises(UsageError, match=match):
        read_campaign(written(tmp_path, text), "demo")


def test_a_run_may_have_another_base_and_be_judged_at_other_numbers_of_replicates(tmp_path: Path) -> None:
    text = GOOD.replace('method = "gradual"', 'base = "other"\nmethod = "gradual"')
    text = text.replace('method = "iterative"', 'base = "other"\nmethod = "iterative"')
    campaign = read_campaign(written(tmp_path, text), "demo")
    assert {run.recipe.length for run in campaign.runs.values()} == {"20it"}
    assert {claim.plan.at for claim in campaign.claims} == {(3,)}
    assert {*campaign.kernels.values(), *campaign.precisions.values()} == {"sparse", "fp32"}
    campaign = read_campaign(written(tmp_path, text.replace("interim = [3]\n", "")), "demo")
    assert {claim.plan.at for claim in campaign.claims} == {(3, 5)}


def test_a_side_may_have_a_density_or_a_level_of_its_own(tmp_path: Path) -> None:
    text = GOOD.replace('a = { run = "iterative" }', 'a = { run = "iterative", level = 1 }', 1)
    text = text.replace('b = { run = "gradual" }', 'b = { run = "gradual", density = 0.3 }')
    (first, *_) = read_campaign(written(tmp_path, text), "demo").claims
    assert (first.a.level, first.b.level) == (1, 1)
    text = GOOD.replace('a = { run = "iterative" }', 'a = { run = "iterative", level = -1 }', 1)
    assert read_campaign(written(tmp_path, text), "demo").claims[0].a.level == 2, "the last of its two"


def test_a_base_may_have_a_precision_of_its_own(tmp_path: Path) -> None:
    text = GOOD.replace('kernels = "sparse"', 'precision = "bf16"').replace("interim = [3]\n", "interim = [3, 5]\n")
    other = text.replace('length = "20it"', 'length = "30it"')
    here = other.replace('method = "gradual"', 'base = "other"\nmethod = "gradual"')
    with pytest.raises(UsageError, match=r"claims.better: the runs iterative and gradual are trained in fp32 and bf16"):
        read_campaign(written(tmp_path, here), "demo")
    both = here.replace('method = "iterative"', 'base = "other"\nmethod = "iterative"')
    assert set(read_campaign(written(tmp_path, both), "demo").precisions.values()) == {"bf16"}
    assert set(read_campaign(written(tmp_path, other), "demo").precisions.values()) == {"fp32"}


def test_a_claim_about_a_control_that_is_trained_elsewhere(tmp_path: Path) -> None:
    beside = 'controls = ["shuffled"]\ncontrol_densities = [0.3]'
    about = GOOD.replace('b = { run = "gradual" }', 'b = { run = "iterative", role = "shuffled" }')
    path = written(tmp_path, about.replace('controls = ["shuffled"]', beside))
    with pytest.raises(UsageError, match=r"shuffled beside tickets of density 0.3 alone"):
        read_campaign(path, "demo")
    run = 'method = "continuous"\nsettings = { density = 0.3 }\ncontrols = ["shuffled"]\ncontrol_densities = [0.3]'
    text = GOOD.replace('method = "gradual"\nsettings = { density = [0.3, 0.1] }', run)
    text = text.replace('b = { run = "gradual" }', 'b = { run = "gradual", role = "shuffled", level = 5 }')
    (claim, *_) = read_campaign(written(tmp_path, text), "demo").claims
    assert (claim.b.role, claim.b.level) == ("shuffled", 5)


def test_a_scale_or_a_campaign_that_is_not_there(tmp_path: Path) -> None:
    elsewhere = GOOD.replace("\nstatement", '\nscales = ["cpu"]\nstatement')
    with pytest.raises(UsageError, match=r"claims: none is made at the scale demo"):
        read_campaign(written(tmp_path, elsewhere), "demo")
    with pytest.raises(UsageError, match=r"scales: there is no paper: it has demo"):
        read_campaign(written(tmp_path, GOOD), "paper")
    with pytest.raises(UsageError, match=r"there is no campaign stabilising: choose one of .*stabilizing"):
        read_campaign(Path("stabilising"), "demo")
    with pytest.raises(UsageError, match="cannot be read"):
        read_campaign(tmp_path / "absent.toml", "demo")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('method = "gradual"', 'method = "os:system"'),
        ('task = "digits"', 'task = "os:system"'),
        ('task = "digits"', 'task = "imagefolder"\noptions = { path = "/" }'),
        ('controls = ["shuffled"]', 'controls = ["os:system"]'),
        ("densities = [0.3, 0.1] }", 'densities = [0.3, 0.1], score = "os:system" }'),
        ("points = 5 }", 'points = 5, masks = ["os:system"] }'),
        ("points = 5 }", 'points = 5, masks = "shuffled,os:system" }'),
        ("kernels =", 'stability = { masks = ["none", "os:system"] }\nkernels ='),
    ],
)
def test_what_a_file_names_is_data(tmp_path: Path, before: str, after: str) -> None:
    text = GOOD.replace(before, after, 1).replace('method = "gradual"', 'base = "other"\nmethod = "gradual"')
    with pytest.raises(TrustError, match="--trust"):
        read_campaign(written(tmp_path, text), "demo")


def test_the_campaign_of_the_page_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "campaigns.md"
    (block,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    campaign = read_campaign(tmp_path / "mine.toml", "demo")
    assert [claim.name for claim in campaign.claims] == ["weights-matter", "stable"]
    assert campaign.claims[0].plan.at == (3, 5, 7, 10)
