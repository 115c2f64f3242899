"""Words of the command line: lists in every form that users type, densities in percent, choices."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import pytest
import tyro

from ticketry.cli.arguments import parse
from ticketry.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Inner:
    milestones: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Arguments:
    option: tuple[str, ...] = ()
    densities: tuple[float, ...] = ()
    recipe: Inner = dataclasses.field(default_factory=Inner)
    seed: int = 0


@pytest.mark.parametrize(
    "words",
    [
        ["--densities", "0.5,0.2", "--seed", "3"],
        ["--densities", "0.5", "0.2", "--seed", "3"],
        ["--densities=0.5,0.2", "--seed=3"],
        ["--densities", "0.5", "--seed", "3", "--densities", "0.2"],
        ["--densities", "0.5,", "0.2", "--seed", "3"],
    ],
)
def test_lists_in_every_form(words: list[str]) -> None:
    found = parse(Arguments, [*words, "--recipe.milestones", "50%,75%"], prog="test", description="")
    assert (found.densities, found.seed, found.recipe.milestones) == ((0.5, 0.2), 3, ("50%", "75%"))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--option", "a=1", "b=2"], ("a=1", "b=2")),
        (["--option", "a=1,b=2"], ("a=1", "b=2")),
        (["--option", "a=1", "--option", "b=2"], ("a=1", "b=2")),
        (["--option", "path=/data/one, two"], ("path=/data/one, two",)),
        (["--option", "mean=0.5,0.4,0.3", "size=64"], ("mean=0.5,0.4,0.3", "size=64")),
        (["--option=a=1"], ("a=1",)),
    ],
)
def test_values_of_options_may_have_commas(words: list[str], options: tuple[str, ...]) -> None:
    assert parse(Arguments, words, prog="test", description="").option == options


@dataclasses.dataclass(frozen=True)
class Named:
    name: Annotated[str, tyro.conf.Positional]
    density: float = 0.0
    at: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--density", "10%"],
        ["--density", "10%", "run"],
        ["--density=10%", "run"],
        ["--density", "0.1", "run", "--at", "30%", "0.2"],
        ["run", "--at", "30%,20%", "--density", "0.1"],
    ],
)
def test_a_density_may_stand_before_a_name(words: list[str]) -> None:
    found = parse(Named, words, prog="test", description="")
    assert (found.name, found.density) == ("run", 0.1)
    assert found.at in ((), (0.3, 0.2))


@dataclasses.dataclass(frozen=True)
class Shares:
    density: float | None = None
    densities: tuple[float, ...] = ()
    sparsity: float | None = None
    device: Literal["auto", "cpu"] = "auto"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--density", "64.3%"], Shares(density=0.643)),  # 64.3 / 100 as floats is 0.6429999999999999
        (["--density=10%"], Shares(density=0.1)),
        (["--densities", "50%,0.2", "5 %"], Shares(densities=(0.5, 0.2, 0.05))),
        (["--sparsity", "90%", "--device", "cpu"], Shares(sparsity=0.9, device="cpu")),
        ([], Shares()),
    ],
)
def test_densities_in_percent(words: list[str], expected: Shares) -> None:
    assert parse(Shares, words, prog="test", description="") == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--density", "10"], r"not 10: 10 %\? write 10% or 0\.1$"),
        (["--sparsity", "90"], r"not 90: 90 %\? write 90% or 0\.9$"),
        (["--densities", "0.5,20"], r"20 %\? write 20% or 0\.2$"),
        (["--density", "0%"], r"0 < density <= 1, not 0%$"),
        (["--density", "a tenth"], r"'a tenth' is no share: write it as 0\.1 or as 10%$"),
        (["--device", "cpi"], r"^device 'cpi' is not known: auto, cpu; did you mean cpu\?$"),
    ],
)
def test_what_a_user_probably_meant(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(Shares, words, prog="test", description="")


@dataclasses.dataclass(frozen=True)
class Rates:
    schedule: Literal["constant", "cosine"] = "constant"


@dataclasses.dataclass(frozen=True)
class Cuts:
    recipe: Rates = dataclasses.field(default_factory=Rates)
    schedule: Literal["halving", "exponential"] = "halving"


def test_a_flag_of_its_own_has_its_own_choices() -> None:
    """Early pruning has a schedule of cuts, and its recipe one of learning rates."""
    words = ["--schedule", "exponential", "--recipe.schedule", "cosine"]
    assert parse(Cuts, words, prog="test", description="") == Cuts(Rates("cosine"), "exponential")
    with pytest.raises(UsageError, match=r"^schedule 'cosine' is not known: halving, exponential"):
        parse(Cuts, ["--schedule", "cosine"], prog="test", description="")
    with pytest.raises(UsageError, match=r"^--recipe\.schedule 'cosin' is not known: constant, cosine; did you mean"):
        parse(Cuts, ["--recipe.schedule", "cosin"], prog="test", description="")
