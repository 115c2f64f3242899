"""Every number of every setting has one set of bounds: on the command line, in Python and in a run file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from cli.calling import call
from samples import sample
from ticketry.choices import BOUNDS, Bounds, check_bounds, check_choices, check_storable_numbers, format_value
from ticketry.cli.search import read_arguments, request_from_arguments
from ticketry.errors import TicketryError, UsageError
from ticketry.evidence.settings import StabilitySettings, VerifySettings
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import BenchOptions, LabOptions, StructureOptions
from ticketry.experiments.request import SearchRequest, build_request
from ticketry.experiments.run_file import format_run_file, read_run_file
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.search import METHODS, method
from ticketry.tasks.recipe import Recipe

WHOLE = (7, -1, 2**63 - 1, 2**63, 10**400)
BROKEN = (0.0, 0.5, 1.5, -1.0, math.inf, math.nan)


def _kinds(hint: Any) -> set[type]:
    """Return the types that a field's values may have, those in tuples too."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return set().union(*map(_kinds, inner)) if inner else set()
    return {hint} if isinstance(hint, type) else set()


def _numbers(kind: Any) -> list[tuple[str, bool, bool]]:
    """Return each field that is a number: its name, whether it is a whole number, whether it is a tuple of numbers."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        kinds = _kinds(hints[field.name])
        if kinds & {int, float}:
            found.append((field.name, float not in kinds, typing.get_origin(hints[field.name]) is tuple))
    return found


SETTINGS = [(name, *number) for name in METHODS.built_in for number in _numbers(method(name).Settings)]


def _tried(make: Any) -> Any:
    """Return what `make` returns, or None if it raises a UsageError."""
    with contextlib.suppress(UsageError):
        return make()
    return None


def _by_words(words: list[str]) -> SearchRequest | None:
    def made() -> SearchRequest:
        chosen, arguments = read_arguments(words, command="search")
        return request_from_arguments(chosen, arguments)

    with contextlib.suppress(SystemExit):  # tyro's, for what is no number of the kind
        return _tried(made)
    return None


@pytest.mark.parametrize(
    ("name", "field", "whole", "several"),
    sample(SETTINGS, SETTINGS[::80], ["-".join(map(str, one[:2])) for one in SETTINGS]),
)
def test_settings_have_the_same_bounds_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, field: str, whole: bool, several: bool
) -> None:
    for value in WHOLE if whole else BROKEN:
        given: Any = (value,) if several else value

        def by_keywords(given: Any = given) -> SearchRequest:
            return build_request(
                name, "digits", decode_settings({field: given}, method(name).Settings, what="run(…)")[0]
            )

        in_python = _tried(by_keywords)
        written = f'method = "{name}"\ntask = "digits"\n[settings]\n{field} = '
        number = str(value) if isinstance(value, int) else repr(value)
        base = 'base = "eager"\n' if field == "time" else ""  # a file that names no base is older than bases
        (tmp_path / "run.toml").write_text(written + (f"[{number}]\n" if several else f"{number}\n") + base)
        in_a_file = _by_words(["--config", str(tmp_path / "run.toml")])
        on_the_line = _by_words([name, "--task", "digits", f"--{field.replace('_', '-')}={number}"])
        capsys.readouterr()
        found = [one and one.settings for one in (in_python, in_a_file, on_the_line)]
        assert found[0] == found[1] == found[2], f"{name} {field} {value!r:.40}: {found}"
        if in_python is not None and not (tmp_path / "again.toml").exists():
            (tmp_path / "again.toml").write_text(format_run_file(in_python.describe(), in_python.task.spec))
            again = _by_words(["--config", str(tmp_path / "again.toml")])
            assert again is not None
            assert again.settings == in_python.settings
            assert again.recipe == in_python.recipe


@pytest.mark.parametrize(("name", "whole", "several"), sample(_numbers(Recipe), 2))
def test_recipes_have_the_same_bounds_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, whole: bool, several: bool
) -> None:
    assert not several
    plain = method("iterative").Settings()
    others = dataclasses.asdict(build_request("iterative", "digits", plain).recipe)
    written = "".join(f"{other} = {json.dumps(one)}\n" for other, one in others.items() if other != name)
    for value in WHOLE if whole else BROKEN:
        in_python = _tried(lambda value=value: build_request("iterative", "digits", plain, recipe={name: value}))
        head = 'method = "iterative"\ntask = "digits"\n[recipe]\n'
        (tmp_path / "run.toml").write_text(f"{head}{written}{name} = {value}\n")
        in_a_file = _by_words(["--config", str(tmp_path / "run.toml")])
        on_the_line = _by_words(["iterative", "--task", "digits", f"--recipe.{name.replace('_', '-')}={value}"])
        capsys.readouterr()
        found = [one and getattr(one.recipe, name) for one in (in_python, in_a_file, on_the_line)]
        assert found[0] == found[1] == found[2], f"{name} {value!r:.40}"
        assert found[0] is None or math.isfinite(found[0])


@pytest.mark.parametrize("name", sample(BOUNDS, 3))
def test_options_of_a_search_have_the_same_bounds_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    low, high, whole = BOUNDS[name]
    step = 1 if whole else 0.5
    for value in (low, high, low - step, high + step, *((2**63, 10**400) if whole else (math.nan, math.inf))):
        fits = (isinstance(value, int) or not whole) and low <= value <= high

        def in_python(value: Any = value) -> object:
            if name == "replicates":
                return build_request("iterative", "digits", method("iterative").Settings(), replicates=value)
            if "seed" in name:
                return Seeds.of(value)
            return decode_settings({name: value}, LabOptions, what="run(…)")[0]

        (tmp_path / "run.toml").write_text(f'method = "iterative"\ntask = "digits"\n{name} = {value}\n')
        accepted = [
            _tried(in_python) is not None,
            _tried(lambda: read_run_file(tmp_path / "run.toml")) is not None,
            _by_words(["iterative", "--task", "digits", f"--{name.replace('_', '-')}={value}"]) is not None,
        ]
        capsys.readouterr()
        assert accepted == [fits] * 3, f"{name} {value!r:.40}"
        if name in ("workers", "threads", "devices", "checkpoint_seconds") and not fits:
            with pytest.raises(UsageError, match=f"{name} must be"):
                Lab(tmp_path / "store", **{name: value})
    assert not (tmp_path / "store").exists(), "refused before anything is made"


@pytest.mark.parametrize("kind", [VerifySettings, StabilitySettings, BenchOptions, StructureOptions])
def test_other_settings_hold_numbers_that_can_be_written(kind: Any) -> None:
    for name, whole, several in _numbers(kind):
        for value in (2**63, -(2**63) - 1, 10**5000) if whole else (math.inf, math.nan, 10**5000):
            with pytest.raises(TicketryError) as caught:
                kind(**{name: (value,) if several else value})
            assert len(str(caught.value)) < 500


def test_the_last_seed_is_followed_by_the_first() -> None:
    assert Seeds.of(2**63 - 1).replicate(1) == Seeds.of(-(2**63))
    assert Seeds.of(5).replicate(3) == Seeds.of(8)
    assert Seeds.of(-(2**63)).replicate(-1) == Seeds.of(2**63 - 1)


@pytest.mark.parametrize("value", [10**5000, -(1 << 20000)], ids=["large", "small"])
def test_numbers_of_thousands_of_digits_are_refused_in_words(value: int) -> None:
    import torch

    import ticketry as tk

    layer = torch.nn.Linear(4, 2)
    for attempt in (
        lambda: tk.prune(layer, density=value),
        lambda: tk.Recipe(lr=value),
        lambda: tk.Recipe(batch=value),
        lambda: tk.run("iterative", task="digits", levels=value),
        lambda: tk.run("iterative", task="digits", seeds=value),
        lambda: tk.run("iterative", task="digits", recipe={"lr": value}),
        lambda: check_bounds("threads", value),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert any(words in str(caught.value) for words in ("digits", "64 bits", "characters", "out of range"))


def test_numbers_inside_of_settings_are_checked() -> None:
    @dataclasses.dataclass
    class Inner:
        share: float = 0.5

    @dataclasses.dataclass
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        several: tuple[float, ...] = (1.0,)
        flag: bool = True
        text: str = "nan"

    check_storable_numbers(Outer())
    for odd, name in ((Outer(Inner(math.nan)), "inner.share"), (Outer(several=(1.0, math.inf)), "several")):
        with pytest.raises(UsageError, match=f"{name} must be a finite number"):
            check_storable_numbers(odd)


def test_values_in_messages() -> None:
    assert format_value(1.5) == "1.5"
    assert format_value("1.5") == "'1.5'"
    assert len(format_value(10**400)) < 100
    assert "thousands of digits" in format_value(10**5000)
    assert "thousands of digits" in format_value((10**5000,))
    with pytest.raises(UsageError, match=r"^x must be a number from 0 to 1, got 1\.5$"):
        check_bounds("x", 1.5, Bounds(0, 1, whole=False))
    for odd in (True, "1", None, 1.0):
        with pytest.raises(UsageError, match="a whole number"):
            check_bounds("threads", odd)


def test_a_run_file_keeps_odd_characters(tmp_path: Path) -> None:
    odd = {"text": 'a\x7fb\u2028"\\\t', "key\x7f": 1}
    described = {
        "task": {"name": "digits"},
        "method": "m",
        "replicates": 1,
        "controls": [],
        "seeds": {},
        "settings": odd,
        "recipe": {},
    }
    (tmp_path / "run.toml").write_text(format_run_file(described, None))
    assert read_run_file(tmp_path / "run.toml")["settings"] == odd
    assert json.loads(json.dumps(odd)) == odd
    with pytest.raises(ValueError):
        format_run_file({**described, "settings": {"a": math.nan}}, None)


def test_texts_that_are_no_numbers_are_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    values = ("9" * 5000, "-" + "9" * 4000, "1e999", "nan", "0x1f", "1_000x")
    options = ("--seed", "--threads", "--levels", "--recipe.lr", "--checkpoint-seconds", "--replicates")
    for option, value in zip(options, values, strict=True):
        words = ("search", "imp", "--task", "digits", f"{option}={value}", "--store", "nowhere")
        code, out, err = call(capsys, *words)
        assert (code, out) == (2, ""), (option, value[:20], err)
        assert "Traceback" not in err


# -- choices -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chosen:
    way: typing.Literal["", "far", "near"] = "far"
    steps: tuple[typing.Literal["one", "two"], ...] = ()
    any: str = "thing"
    pair: tuple[int, str] = (1, "far")


def test_choices() -> None:
    check_choices(Chosen())
    check_choices(Chosen(way="", steps=("two", "one", "two"), any="else"))
    for values, reason in (
        ({"way": "middle"}, "way 'middle' is not known: far, near$"),
        ({"steps": ("one", "three")}, "steps 'three' is not known: one, two$"),
        ({"way": "neer"}, r"way 'neer' is not known: far, near; did you mean near\?$"),
    ):
        with pytest.raises(UsageError, match=f"^{reason}"):
            check_choices(Chosen(**values))
        with pytest.raises(UsageError, match=f"^trip: {reason}"):
            check_choices(Chosen(**values), "trip: ")
