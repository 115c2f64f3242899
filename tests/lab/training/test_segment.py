"""Keys of segments: they cover what decides the numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest

from ticketry.errors import TaskError, UsageError
from ticketry.lab.lab import Lab
from ticketry.lab.training import segment as segment_module
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.variants import HeldMask, Penalty, Shrunk
from ticketry.search.gating.gating import Gating
from ticketry.search.gating.tick import Tick
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task


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
    "variants": (HeldMask(mask="m" * 64),),
    "first": 1,
    "last": 31,
    "total": 101,
    "per_epoch": 11,
    "order_seed": 4,
    "arithmetic": Arithmetic(precision="bf16"),
}
MASK = HeldMask(mask="s" * 64)
VARIANTS = [
    HeldMask(mask="m" * 64),
    Shrunk(mask="m" * 64),
    Gating(scope=("0.weight",)),
    Penalty(kind="hoyer_square", strength=1e-4, names=("0.weight",)),
    Tick(norms=(("1.weight", "1.bias"),)),
]
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
    "earlier": "h" * 64,
    "reset": "code",
    "seed": 1,
    "frozen": True,
    "objective": "reverse_kl",
    "density": 0.1,
    "temperature": 0.5,
    "structured": True,
    "pattern": "4x1",
    "prices": (((0.0, 1.0), (0.0, 2.0)),),
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
CHANGED_ARITHMETIC = {
    "device": "cuda",
    "precision": "bf16",
    "channels_last": True,
    "threads": 2,
    "kernels": "sparse 1 avx2",
    "ranks": 2,
    "parallel": "fsdp",
    "norms": "own",
}
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


@pytest.mark.parametrize("field", [*CHANGED, *CHANGED_RECIPE, *CHANGED_ARITHMETIC])
def test_every_field_is_in_the_key(field):
    base = replace(SEGMENT, variants=(MASK,))
    for part, cases in (("recipe", CHANGED_RECIPE), ("arithmetic", CHANGED_ARITHMETIC)):
        if field in cases:
            changed = replace(getattr(base, part), **{field: cases[field]})
            assert replace(base, **{part: changed}).trajectory != base.trajectory
    if field in CHANGED:
        assert replace(base, **{field: CHANGED[field]}).key != base.key


def test_a_network_is_trained_shrunk_by_a_mask(tmp_path, points):
    with pytest.raises(UsageError, match="has no mask"):
        Lab(tmp_path).segment(points, start=0, shrunk=True)


def test_every_variant_is_in_the_key():
    """Alone, and beside a mask where that can be."""
    segments = [replace(SEGMENT, variants=(one,)) for one in VARIANTS]
    segments += [replace(SEGMENT, variants=(MASK, one)) for one in VARIANTS if one.masked_by() is None]
    assert len({segment.key for segment in [SEGMENT, *segments]}) == len(segments) + 1


def test_the_order_in_which_variants_are_named_is_not_in_the_key():
    """A mask begins first and acts on gradients last, whatever else there is."""
    one, other = (replace(SEGMENT, variants=pair) for pair in ((MASK, VARIANTS[3]), (VARIANTS[3], MASK)))
    assert one.variants == other.variants == (MASK, VARIANTS[3])
    assert one.key == other.key


@pytest.mark.parametrize("field", CHANGED_GATES)
def test_every_setting_of_gates_is_in_the_key(field):
    rounds = field != "structured"  # gates on channels have one
    frozen = field == "objective"  # another one than the task's is for frozen weights
    earlier = {"earlier": "g" * 64, "reset": "paper"} if rounds else {}
    gates = Gating(scope=("0.weight",), frozen=frozen, **earlier)
    changed = replace(gates, **{field: CHANGED_GATES[field]})
    start = Start(state="s" * 64)
    assert (
        replace(SEGMENT, start=start, variants=(changed,)).key != replace(SEGMENT, start=start, variants=(gates,)).key
    )


REFUSED = [
    (lambda: replace(SEGMENT, variants=(Shrunk(mask="m" * 64), Gating(scope=("0.weight",)))), "trained whole"),
    (lambda: replace(SEGMENT, variants=(Shrunk(mask="m" * 64), MASK)), "two masks"),
    (lambda: replace(SEGMENT, variants=(MASK, HeldMask(mask="m" * 64))), "at most one variant of training"),
    (lambda: replace(SEGMENT, variants=(MASK, Gating(scope=("0.weight",), structured=True))), "segment has a mask"),
    (lambda: replace(SEGMENT, first=6, last=5), "not from 6 to 5"),
    (lambda: Gating(scope=("0.weight",), earlier="g" * 64), "earlier round"),
    (lambda: Gating(scope=("0.weight",), reset="paper"), "earlier round"),
    (Start, "either"),
    (lambda: Start(seed=0, state="s" * 64), "either"),
]


@pytest.mark.parametrize(("build", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_impossible_segment_is_refused(build, said):
    with pytest.raises(UsageError, match=said):
        build()


def test_starts_and_the_version_of_the_numerics_are_in_the_key(monkeypatch):
    keys = {replace(SEGMENT, start=start).key for start in [SEGMENT.start, *STARTS]}
    assert len(keys) == len(STARTS) + 1
    before = SEGMENT.trajectory
    monkeypatch.setattr(segment_module, "NUMERICS", 2)
    assert replace(SEGMENT).trajectory != before


def test_places_in_the_schedule_are_counted_in_its_own_steps_and_epochs():
    """100 steps, 10 an epoch; by hand."""
    later = replace(SEGMENT, first=5)
    assert (SEGMENT.steps, later.steps, later.shortened_to(5).steps) == (30, 25, 0)
    assert [later.at(step) for step in ("2ep", "7it", "3%", "100%")] == [20, 7, 3, 100]
    with pytest.raises(UsageError, match="five"):
        SEGMENT.at("five")


def test_data_that_changed_under_their_name_are_told(points, points_class):
    class Fewer(points_class):
        def load(self, data=None):
            splits = super().load(data)
            return replace(
                splits, train=replace(splits.train, inputs=splits.train.inputs[:64], targets=splits.train.targets[:64])
            )

    segment = replace(SEGMENT, task=points, recipe=points.recipe, per_epoch=7)
    assert segment.course(None).sizes()["train"] == 200
    with pytest.raises(TaskError, match="'points' has 64 training examples now"):
        replace(segment, task=Fewer()).course(None)


def test_where_and_how_it_is_stored_is_not_in_the_key(tmp_path, points):
    labs = [
        Lab(tmp_path / "one"),
        Lab(tmp_path / "two", data=tmp_path, workers=3, on_event=print, checkpoint_seconds=1),
    ]
    one, two = (lab.segment(points, start=1, order_seed=2) for lab in labs)
    assert one.key == two.key
    labs[0].train(one.shortened_to(2), label="a name")
    assert labs[0].segment(points, start=1, order_seed=2).key == one.key


def test_a_description_round_trips_through_json():
    """With every start, every variant, gates of an earlier round, and another arithmetic."""
    earlier = Gating(scope=("0.weight", "3.weight"), init=-1, earlier="g" * 64, reset="code")
    segments = [replace(SEGMENT, start=start, variants=(MASK,)) for start in STARTS]
    segments += [replace(SEGMENT, variants=(one,)) for one in VARIANTS]
    segments += [replace(SEGMENT, start=Start(state="s" * 64), variants=(earlier,))]
    segments += [replace(SEGMENT, arithmetic=Arithmetic(precision="bf16", threads=2))]
    for segment in segments:
        again = Segment.from_description(json.loads(json.dumps(segment.describe())), segment.task)
        assert again == segment
        assert again.key == segment.key


def test_what_a_segment_says_of_itself():
    """Its mask, its channels, the blobs that it needs, and its continuation."""
    shrunk = replace(SEGMENT, variants=(Shrunk(mask="m" * 64),))
    assert shrunk.whole_channels
    assert shrunk.variant(Shrunk) is shrunk.variants[0]
    held = replace(SEGMENT, start=Start(state="s" * 64, optimizer="o" * 64), variants=(HeldMask(mask="m" * 64),))
    assert not held.whole_channels
    assert held.start_digests() == ["s" * 64, "o" * 64, "m" * 64]
    assert (shrunk.mask, held.mask, SEGMENT.mask, SEGMENT.start_digests()) == ("m" * 64, "m" * 64, None, [])
    assert SEGMENT.shortened_to(60).trajectory == SEGMENT.trajectory
    assert SEGMENT.shortened_to(60).key != SEGMENT.key
    assert SEGMENT.shortened_to(60).shortened_to(30) == SEGMENT


def test_a_description_is_of_one_task():
    with pytest.raises(TaskError, match="no longer the one"):
        Segment.from_description(SEGMENT.describe(), GoldenTask(version=2))


GOLDEN = (
    '{"arithmetic":{"channels_last":false,"device":"cpu","precision":"fp32","threads":1},"first":0,'
    '"numerics":1,"order_seed":3,"per_epoch":10,"recipe":{"augment":[],"batch":128,"beta2":0.999,"clip":0.0,'
    '"gamma":0.1,"label_smoothing":0.0,"length":"10ep","lr":0.1,"milestones":["50%","75%"],"momentum":0.9,'
    '"nesterov":false,"optimizer":"sgd","schedule":"multistep","warmup":"0it","weight_decay":0.0},'
    '"start":{"optimizer":null,"seed":7,"state":null},"task":{"name":"golden","shape":[2,3],"version":1},"total":100,"variants":[]}'
)


def test_golden_key():
    """If this breaks, users' stores no longer know what they hold: change the key on purpose or not at all."""
    digest = "7722196e17eca118331998edf0e83ddf0d1f0e06347020ce090df93a9ff38d6a"
    assert hashlib.sha256(GOLDEN.encode()).hexdigest() == digest
    assert SEGMENT.key == f"{digest}@30"
