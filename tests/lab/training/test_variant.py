"""What a variant of training is if it says nothing of its own, and how one of another package is told in keys."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.lab.training.variant import Variant, order_variants, variant_from_description
from ticketry.lab.training.variants import HeldMask, Penalty


@dataclass(frozen=True, kw_only=True)
class Noise(Variant):
    name = "noise"
    scale: float = 0.01
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Alone(Variant):
    name = "alone"

    def conflict(self, other: Variant) -> str | None:
        return f"{other.name} disturbs"


@dataclass(frozen=True, kw_only=True)
class First(Variant):
    name = "zzz"
    outermost = True


PLACE = f"{__name__}:Noise"
SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
NOISE = Noise(scale=0.5, layers=("fc",))
# -- a variant that says nothing ---------------------------------------------------------------------------------------


def test_a_variant_of_ones_own_is_told_by_its_place_and_its_source() -> None:
    assert Noise.identity() == {"variant": "noise", "place": PLACE, "source": SOURCE}
    assert HeldMask.identity() == {"variant": "held_mask"}


def test_one_without_a_source_is_told_so() -> None:
    """As at a prompt and in a notebook, where classes are of a module that has no file."""
    typed: dict[str, Any] = {"__name__": "__main__", "Variant": Variant}
    exec("class Typed(Variant):\n    name = 'typed'\n", typed)
    Typed = typed["Typed"]
    Typed.__module__ = "made_at_a_prompt"
    with pytest.raises(UsageError, match=r"made_at_a_prompt:Typed has no source file.*in a module of your own"):
        Typed.identity()


def test_a_description_has_what_is_not_by_default() -> None:
    assert Noise().describe() == {}
    assert NOISE.describe() == {"scale": 0.5, "layers": ("fc",)}
    assert Noise.from_description({"scale": 0.5, "layers": ("fc",)}) == NOISE


def test_a_variant_comes_back_from_its_description() -> None:
    described = {**Noise.identity(), **Noise(scale=0.5).describe()}
    assert variant_from_description(json.loads(json.dumps(described))) == Noise(scale=0.5)
    penalty = Penalty(kind="hoyer_square", strength=1e-4, names=("0.weight",))
    assert variant_from_description({**Penalty.identity(), **penalty.describe()}) == penalty


def test_a_variant_whose_source_has_changed_is_another_one() -> None:
    for told in ({"source": "0" * 64}, {}):
        described = {"variant": "noise", "place": PLACE, **told}
        with pytest.raises(
            UsageError, match=r"^the source of the variant of training 'noise' is no longer that of this"
        ):
            variant_from_description(described)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"variant": "noise"}, "^the variant of training 'noise' is not known here: import"),
        (
            {"variant": "noise", "place": "else:Noise"},
            "^the variant of training 'noise' of else:Noise is not known here",
        ),
    ],
)
def test_a_variant_that_was_not_imported_is_not_known(described: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        variant_from_description(described)


@pytest.mark.parametrize("values", [{}, {"name": 3}, {"name": "two words"}])
def test_a_name_has_to_be_an_identifier(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^Nameless is no variant of training: its name is no identifier"):
        type("Nameless", (Variant,), values)


def test_variants_begin_in_an_order_of_their_own() -> None:
    """What removes weights before all others, then by name."""
    penalty = Penalty(kind="hoyer_square", strength=1e-4, names=("0.weight",))
    for given in ([First(), NOISE, penalty], [penalty, NOISE, First()], [NOISE, First(), penalty]):
        assert order_variants(tuple(given)) == (First(), NOISE, penalty)
    assert order_variants(()) == ()


def test_either_of_two_may_refuse_the_other() -> None:
    for pair in ((Alone(), NOISE), (NOISE, Alone())):
        with pytest.raises(UsageError, match=r"^noise disturbs$"):
            order_variants(pair)
    with pytest.raises(UsageError, match="at most one variant of training called 'noise'"):
        order_variants((NOISE, Noise()))
