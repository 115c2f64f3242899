"""A ticket that is trained in a way of its own: its controls are trained so too, and so is it when it is verified."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, TrustError
from ticketry.evidence.control import explain_undefined_control
from ticketry.evidence.controls import store_control_mask, train_control
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verification import verify
from ticketry.experiments.verify import execute_verify
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.variant import _KNOWN, Effect, Variant
from ticketry.records.schema import as_json

OWN = '''
from dataclasses import dataclass, replace

import ticketry as tk
from ticketry.lab.retrain import retraining
from ticketry.lab.training.variant import Effect, Variant
from ticketry.search import Found


@dataclass(frozen=True, kw_only=True)
class Scaled(Variant):
    """Gradients times a factor."""

    name = "scaled"
    factor: float = 1.0

    def effect(self, around):
        return ScaledEffect(around, self.factor)


class ScaledEffect(Effect):
    def __init__(self, around, factor):
        super().__init__(around)
        self.factor = factor

    def begin(self, training, carried):
        self.weights = tk.scope(training.model).parameters(training.model)

    def after_backward(self):
        for weight in self.weights.values():
            weight.grad.mul_(self.factor)


class Boosted:
    """Random masks, trained with larger gradients."""

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        """Its settings."""

        density: tuple[float, ...] = (0.2,)
        """Fractions kept."""

    @staticmethod
    def search(lab, task, recipe, settings, seeds):
        whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
        dense = lab.train(whole, keep=(0,))
        early = lab.at(dense, 0)
        yield Found(0, None, early, dense, "continue", dense)
        (density,) = settings.density
        mask = lab.store.put_mask(tk.prune(lab.model(task), density, score="random", seed=seeds.mask))
        how = {"mask": mask, "retrain": "continue", "rewound": early, "trained": dense, "order_seed": seeds.order}
        segment = retraining(lab, task, recipe, variants=[Scaled(factor=1 / density)], **how)
        yield Found(1, mask, early, dense, "continue", lab.train(segment), searched=(dense,))
'''
NAME = "own_boosted_training"
RECIPE = tk.Recipe(length="12it", batch=32, lr=0.05, momentum=0.0)
QUICK: dict[str, Any] = {"seeds": 1, "noise": False, "references": False, "controls": ("shuffled",), "margin": 1.0}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module of a package of one's own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{NAME}.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield importlib.import_module(NAME)
        del sys.modules[NAME]


@dataclass
class Searched:
    lab: Lab
    task: tk.Task
    ticket: Found
    saved: Path
    controls: dict[str, float]
    """What the run's record tells of them."""


@pytest.fixture(scope="module")
def searched(own: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    store, task = tmp_path_factory.mktemp("own-training") / "store", tk.task("digits")
    controls = ("shuffled", "random_reinit", "cyclic_random")
    run = tk.run(
        f"{NAME}:Boosted", task="digits", recipe=RECIPE, controls=controls, replicates=1, store=store, workers=0
    )
    with Lab(store) as lab:
        ticket = tk.search.method(f"{NAME}:Boosted")(lab, task, recipe=RECIPE)[0][1]
        told = {row.role: row.test["accuracy"] for row in run.record.points if row.level == 1}
        yield Searched(lab, task, ticket, Path(run.tickets[0].path), told)


def by_hand(searched: Searched, own: Any, **what: Any) -> float:
    """The test accuracy of a training with the ticket's own variant, written out."""
    given = {"order_seed": 0, **what}
    segment = searched.lab.segment(searched.task, recipe=RECIPE, variants=[own.Scaled(factor=5.0)], **given)
    return float(searched.lab.train(segment).metrics["test"]["accuracy"])


def test_a_control_is_trained_as_its_ticket(searched: Searched, own: Any) -> None:
    early, mask = Start(state=searched.ticket.rewound.model), searched.ticket.mask
    assert mask is not None
    shuffled = store_control_mask(searched.lab, searched.task, "shuffled", mask, Seeds())
    assert searched.controls["ticket"] == by_hand(searched, own, start=early, mask=mask)
    assert searched.controls["shuffled"] == by_hand(searched, own, start=early, mask=shuffled)
    for control in ("random_reinit", "cyclic_random"):
        made = train_control(searched.lab, searched.task, RECIPE, control, searched.ticket, Seeds())
        assert [type(one).__name__ for one in made.segment.variants] == ["HeldMask", "Scaled"]
        assert made.metrics["test"]["accuracy"] == searched.controls[control]


def test_a_verified_ticket_is_trained_as_it_was(searched: Searched, own: Any) -> None:
    ticket = Ticket.load(searched.saved)
    made = verify(searched.lab, ticket, VerifySettings(**QUICK))
    order = made.compared.subject.fresh_seeds(0)
    start = Start(state=searched.ticket.rewound.model)
    assert list(made.values["ticket"]) == [
        by_hand(searched, own, start=start, mask=ticket.mask, order_seed=order.order)
    ]
    shuffled = store_control_mask(searched.lab, searched.task, "shuffled", searched.ticket.mask, order)
    assert list(made.values["shuffled"]) == [by_hand(searched, own, start=start, mask=shuffled, order_seed=order.order)]
    dense = searched.lab.segment(searched.task, start=start, order_seed=order.order, recipe=RECIPE)
    assert list(made.values["dense"]) == [searched.lab.train(dense).metrics["test"]["accuracy"]]


def test_a_variant_that_nobody_imported_is_imported_only_if_its_user_says_so(
    searched: Searched, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in [known for known in _KNOWN if NAME in known]:
        monkeypatch.delitem(_KNOWN, known)
    monkeypatch.delitem(sys.modules, NAME)
    settings = VerifySettings(**QUICK)
    with pytest.raises(TrustError, match=f"variant of training '{NAME}:Scaled'.*--trust"):
        execute_verify(searched.lab, searched.saved, settings)
    assert NAME not in sys.modules
    record = as_json(execute_verify(searched.lab, searched.saved, settings, trust=True))
    assert [network["role"] for network in record["networks"]] == ["ticket", "dense", "shuffled"]
    assert NAME in sys.modules


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"variant": "penalty", "strength": "much"}, "has invalid fields for 'penalty'"),
        ({"variant": "penalty", "kind": "none", "strength": 1.0, "names": ["x"]}, "cannot be restored"),
        ({"variant": "held_mask"}, "has invalid fields for 'held_mask'"),
    ],
)
def test_variants_that_cannot_be_are_refused(searched: Searched, told: dict[str, Any], said: str) -> None:
    ticket = Ticket.load(searched.saved)
    info = {**ticket.info, "segment": {**ticket.info["segment"], "variants": [told]}}
    with pytest.raises(TicketError, match=said):
        verify(searched.lab, Ticket(ticket.mask, ticket.start, info), VerifySettings(**QUICK))


def test_of_a_ticket_that_was_given_a_structure_the_mask_alone_is_another(searched: Searched, own: Any) -> None:
    ticket = Ticket.load(searched.saved)
    other = searched.lab.store.get_mask(
        store_control_mask(searched.lab, searched.task, "shuffled", searched.ticket.mask, Seeds.of(9))
    )
    settings = VerifySettings(**{**QUICK, "controls": ("random_reinit",)})
    made = verify(searched.lab, Ticket(other, ticket.start, ticket.info), settings)
    start, order = Start(state=searched.ticket.rewound.model), made.compared.subject.fresh_seeds(0).order
    assert list(made.values["ticket"]) == [by_hand(searched, own, start=start, mask=other, order_seed=order)]


@dataclass(frozen=True, kw_only=True)
class Holding(Variant):
    """Removes weights by a field, of a text, or both."""

    name = "holding"
    mask: str = ""
    text: str = ""

    def masked_by(self) -> str:
        return self.mask or self.text.removeprefix("mask ")

    def effect(self, around: Any) -> Effect:
        return Effect(around)


def held(segment: Segment, mask: str) -> Segment:
    return replace(segment, variants=(Holding(text=f"mask {mask}"),))


def test_where_it_cannot_be_that_is_said_of_each_control(searched: Searched, tmp_path: Path) -> None:
    mask = searched.ticket.mask
    assert mask is not None
    result = replace(searched.ticket.result, segment=held(searched.ticket.result.segment, mask))
    ticket = replace(searched.ticket, result=result)
    assert "'holding' needs the mask" in explain_undefined_control("shuffled", ticket)
    assert "'holding' needs the mask" in explain_undefined_control("cyclic_random", ticket)
    assert (
        explain_undefined_control("random_reinit", ticket) == explain_undefined_control("dense_of_flops", ticket) == ""
    )
    assert explain_undefined_control("shuffled", searched.ticket) == ""
