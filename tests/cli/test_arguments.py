"""Lists on the command line, in every form that users type them."""

from __future__ import annotations

import dataclasses

import pytest

from ticketry.cli.arguments import parse, values_of


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
    found = parse(Arguments, words, prog="test", description="")
    assert (found.densities, found.seed) == ((0.5, 0.2), 3)


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
    assert tuple(values_of([*words, "--seed", "1"], "--option")) == options


def test_a_list_inside_a_group() -> None:
    found = parse(Arguments, ["--recipe.milestones", "50%,75%"], prog="test", description="")
    assert found.recipe.milestones == ("50%", "75%")
