"""Keys of segments: they cover what decides the numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest

from ticketry.errors import TaskError, UsageError
from ticketry.lab import segment as segment_module
from ticketry.lab.gating import Gating
from ticketry.lab.lab import Lab
from ticketry.lab.penalty import Penalty
from ticketry.lab.precision import Arithmetic
from ticketry.lab.segment import Segment, Start
from ticketry.lab.ticking import Ticking
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe


class GoldenTask(Task):
    """Never trained; its key is fixed, so that keys can be written down."""

    name = "golden"

    def __init__(self, **more: object) -> None:
        self.more = more

    def key(self) -> Mapping[str, object]:
        return {"name": "golden", "version": 1, "shape": (2, 3), **self.more}


SEGMENT = Segment(
    task=GoldenTask(),
    recipe=Recipe(milestones=("50%", "75%"), schedule="multistep"),
    start=Start(seed=7),
    mask=None,
    first=0,
    last=30,
    total=100,
    per_epoch=10,
    order_seed=3,
    arithmetic=Arithmetic(),
)

CHANGED = {
    "task": GoldenTask(version=2),
    "recipe": Recipe(milestones=("50%", "76%"), schedule="multistep"),
    "start": Start(seed=8),
    "mask": "m" * 64,
    "first": 1,
    "last": 31,
    "total": 101,
    "per_epoch": 11,
    "order_seed": 4,
    "arithmetic": Arithmetic(precision="bf16"),
    "gates": Gating(scope=("0.weight",)),
    "shrunk": True,
    "penalty": Penalty(kind="hoyer_square", strength=1e-4, names=("0.weight",)),
    "tick": Ticking(norms=(("1.weight", "1.bias"),)),
}
CHANGED_GATES = {
    "scope": ("0.weight", "1.weight"),
    "kind": "stochastic",
    "init": 0.1,
    "penalty": 1e-7,
    "final": 100,
    "anneal": "epoch",
    "optimizer": "adam",
    "lr": 0.2,
    "lr_schedule": "constant",
    "momentum": 0.8,
    "beta2": 0.99,
    "nesterov": True,
    "weight_decay": 1e-4,
    "reset": "code",
    "seed": 1,
    "frozen": True,
    "objective": "reverse_kl",
    "density": 0.1,
    "temperature": 0.5,
    "structured": True,
    "pattern": "4x1",
}
CHANGED_RECIPE = {
    "length": "11ep",
    "batch": 129,
    "optimizer": "adam",
    "lr": 0.1000001,
    "momentum": 0.8,
    "beta2": 0.99,
    "nesterov": True,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "milestones": ("50%",),
    "gamma": 0.2,
    "warmup": "1it",
    "label_smoothing": 0.1,
    "clip": 1.0,
    "augment": ("flip",),
}
CHANGED_ARITHMETIC = {"device": "cuda", "precision": "bf16", "channels_last": True, "threads": 2, "stacked": True}
STARTS = [
    Start(seed=0),
    Start(seed=7, optimizer="o" * 64),
    Start(state="s" * 64),
    Start(state="t" * 64),
    Start(state="s" * 64, optimizer="o" * 64),
    Start(state="s" * 64, optimizer="p" * 64),
]


def test_the_cases_cover_every_field():
    """A new field has to be thought of here too."""
    for kind, cases in (
        (Segment, CHANGED),
        (Recipe, CHANGED_RECIPE),
        (Arithmetic, CHANGED_ARITHMETIC),
        (Gating, CHANGED_GATES),
    ):
        assert {field.name for field in fields(kind)} == set(cases)


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_is_in_the_key(field):
    base = replace(SEGMENT, mask="s" * 64)
    assert replace(base, **{field: CHANGED[field]}).key != base.key


@pytest.mark.parametrize("field", CHANGED_RECIPE)
def test_every_setting_of_the_recipe_is_in_the_key(field):
    recipe = replace(SEGMENT.recipe, **{field: CHANGED_RECIPE[field]})
    assert replace(SEGMENT, recipe=recipe).trajectory != SEGMENT.trajectory


@pytest.mark.parametrize("field", CHANGED_ARITHMETIC)
def test_every_choice_of_arithmetic_is_in_the_key(field):
    arithmetic = replace(SEGMENT.arithmetic, **{field: CHANGED_ARITHMETIC[field]})
    assert replace(SEGMENT, arithmetic=arithmetic).trajectory != SEGMENT.trajectory


@pytest.mark.parametrize("field", CHANGED_GATES)
def test_every_setting_of_gates_is_in_the_key(field):
    rounds = field != "structured"  # gates on channels have one
    start = Start(state="s" * 64, gates="g" * 64 if rounds else None)
    frozen = field == "objective"  # another one than the task's is for frozen weights
    gates = Gating(scope=("0.weight",), reset="paper" if rounds else None, frozen=frozen)
    base = replace(SEGMENT, start=start, gates=gates)
    assert replace(base, gates=replace(base.gates, **{field: CHANGED_GATES[field]})).key != base.key
    assert not rounds or replace(base, start=replace(start, gates="h" * 64)).key != base.key


def test_a_segment_trained_alone_does_not_speak_of_stacks():
    """Keys are older than stacks."""
    assert "stacked" not in SEGMENT.describe()["arithmetic"]
    stacked = replace(SEGMENT, arithmetic=Arithmetic(stacked=True))
    assert stacked.describe()["arithmetic"]["stacked"] is True
    assert Segment.from_description(stacked.describe(), stacked.task) == stacked


def test_a_segment_without_gates_does_not_speak_of_them():
    """Keys are older than gates."""
    assert "gates" not in SEGMENT.describe()
    assert "gates" not in SEGMENT.describe()["start"]


def test_a_segment_that_is_not_shrunk_does_not_speak_of_it():
    """Keys are older than smaller networks."""
    assert "shrunk" not in SEGMENT.describe()
    shrunk = replace(SEGMENT, mask="m" * 64, shrunk=True)
    assert shrunk.describe()["shrunk"] is True
    assert Segment.from_description(shrunk.describe(), shrunk.task) == shrunk


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mask": None}, "has no mask"),
        ({"gates": Gating(scope=("0.weight",))}, "trained whole"),
        ({"arithmetic": Arithmetic(stacked=True)}, "trained alone"),
    ],
)
def test_what_cannot_be_trained_shrunk(wrong, said):
    with pytest.raises(UsageError, match=said):
        replace(SEGMENT, **{"mask": "m" * 64, "shrunk": True, **wrong})


def test_keys_of_gates_are_older_than_frozen_weights_channels_and_patterns():
    described = replace(SEGMENT, gates=Gating(scope=("0.weight",))).describe()["gates"]
    later = {"frozen", "objective", "density", "temperature", "structured", "pattern"}
    assert set(described) == set(CHANGED_GATES) - later


@pytest.mark.parametrize("start", [Start(seed=7), Start(state="s" * 64, gates="g" * 64)])
def test_a_description_of_gates_round_trips_through_json(start):
    gates = Gating(scope=("0.weight", "3.weight"), init=-1, reset="code" if start.gates else None)
    segment = replace(SEGMENT, start=start, gates=gates)
    again = Segment.from_description(json.loads(json.dumps(segment.describe())), segment.task)
    assert again == segment
    assert again.key == segment.key


@pytest.mark.parametrize(
    ("start", "gates"),
    [
        (Start(state="s" * 64, gates="g" * 64), None),
        (Start(state="s" * 64, gates="g" * 64), Gating(scope=("0.weight",))),
        (Start(state="s" * 64), Gating(scope=("0.weight",), reset="paper")),
    ],
)
def test_gates_of_an_earlier_round_are_reset_and_no_others(start, gates):
    with pytest.raises(UsageError, match="earlier round"):
        replace(SEGMENT, start=start, gates=gates)


def test_every_start_is_another():
    keys = {replace(SEGMENT, start=start).key for start in [SEGMENT.start, *STARTS]}
    assert len(keys) == len(STARTS) + 1


def test_the_version_of_the_numerics_is_in_the_key(monkeypatch):
    before = SEGMENT.trajectory
    monkeypatch.setattr(segment_module, "NUMERICS", 2)
    assert replace(SEGMENT).trajectory != before


def test_parts_of_one_trajectory():
    assert SEGMENT.until(60).trajectory == SEGMENT.trajectory
    assert SEGMENT.until(60).key != SEGMENT.key
    assert SEGMENT.until(60).until(30) == SEGMENT


def test_where_and_how_it_is_stored_is_not_in_the_key(tmp_path, points):
    labs = [
        Lab(tmp_path / "one"),
        Lab(tmp_path / "two", data=tmp_path, workers=3, on_event=print, checkpoint_seconds=1),
    ]
    one, two = (lab.segment(points, start=1, order_seed=2) for lab in labs)
    assert one.key == two.key
    labs[0].train(one.until(2), label="a name")
    assert labs[0].segment(points, start=1, order_seed=2).key == one.key


@pytest.mark.parametrize("start", STARTS)
def test_a_description_round_trips_through_json(start):
    segment = replace(SEGMENT, start=start, mask="m" * 64)
    described = json.loads(json.dumps(segment.describe()))
    again = Segment.from_description(described, segment.task)
    assert again == segment
    assert again.key == segment.key


def test_a_description_is_of_one_task():
    with pytest.raises(TaskError, match="no longer the one"):
        Segment.from_description(SEGMENT.describe(), GoldenTask(version=2))


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (6, 5)])
def test_a_segment_goes_forward(first, last):
    with pytest.raises(UsageError, match=f"not from {first} to {last}"):
        replace(SEGMENT, first=first, last=last)


@pytest.mark.parametrize("values", [{}, {"seed": 0, "state": "s" * 64}])
def test_a_start_is_a_seed_or_a_state(values):
    with pytest.raises(UsageError, match="either"):
        Start(**values)


GOLDEN = (
    '{"arithmetic":{"channels_last":false,"device":"cpu","precision":"fp32","threads":1},"first":0,"mask":null,'
    '"numerics":1,"order_seed":3,"per_epoch":10,"recipe":{"augment":[],"batch":128,"beta2":0.999,"clip":0.0,'
    '"gamma":0.1,"label_smoothing":0.0,"length":"10ep","lr":0.1,"milestones":["50%","75%"],"momentum":0.9,'
    '"nesterov":false,"optimizer":"sgd","schedule":"multistep","warmup":"0it","weight_decay":0.0},'
    '"start":{"optimizer":null,"seed":7,"state":null},"task":{"name":"golden","shape":[2,3],"version":1},"total":100}'
)


def test_golden_key():
    """If this breaks, users' stores no longer know what they hold: change the key on purpose or not at all."""
    digest = "629ce21a7971067791b2edd39f850efb236c6dd5df54a097f5941a69f9fde9fc"
    assert hashlib.sha256(GOLDEN.encode()).hexdigest() == digest
    assert SEGMENT.key == f"{digest}@30"


def test_gates_on_channels_are_trained_in_a_whole_network():
    with pytest.raises(UsageError, match="this segment has a mask"):
        replace(SEGMENT, mask="m" * 64, gates=Gating(scope=("0.weight",), structured=True))
