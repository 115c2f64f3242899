from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.errors import UsageError
from ticketry.step import Step

decimals = st.decimals(min_value=0, max_value=100, places=4).map(Fraction)
steps = st.one_of(
    st.integers(0, 10**12).map(lambda count: Step(Fraction(count), "it")),
    decimals.map(lambda value: Step(value, "ep")),
    decimals.map(lambda value: Step(value, "%")),
)


@given(steps)
def test_parse_inverts_str(step):
    assert Step.parse(str(step)) == step
    assert Step.parse(f" {str(step).upper()} ") == step
    assert str(Step.parse(str(step))) == str(step)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("500it", 500, "it"),
        ("0", 0, "it"),
        ("0.5ep", Fraction(1, 2), "ep"),
        ("2.50EP", Fraction(5, 2), "ep"),
        ("2.00 ep", 2, "ep"),
        ("3%", 3, "%"),
        ("0.1%", Fraction(1, 10), "%"),
        ("end", 100, "%"),
        (" End ", 100, "%"),
        (0, 0, "it"),
    ],
)
def test_notations(text, value, unit):
    assert Step.parse(text) == Step(Fraction(value), unit)


@pytest.mark.parametrize(
    "text",
    ["", "500", "3.5", "-1it", "1e3it", "it", ".5ep", "5.ep", "1it2ep", "nanit", "2 epochs", "9" * 5000 + "it", "½ep",
     500, None],
)  # fmt: skip
def test_other_notations_are_refused(text):
    with pytest.raises(UsageError, match="is not a point in training: write 500it, 2ep, 3%, 0 or end"):
        Step.parse(text)


@pytest.mark.parametrize(
    ("text", "message"), [("0.5it", "an iteration is a whole number"), ("100.1%", "at most 100%, not 100.1%")]
)
def test_impossible_amounts_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        Step.parse(text)


def test_the_constructor_checks_its_arguments():
    for value, unit, message in ((-1, "it", "cannot be negative"), (1, "h", "must be it, ep or %, got 'h'")):
        with pytest.raises(UsageError, match=message):
            Step(Fraction(value), unit)


@pytest.mark.parametrize(
    ("text", "total", "per_epoch", "iteration"),
    [
        ("2ep", 1000, 100, 200),
        ("0.5ep", 1000, 5, 3),  # 2.5, half up
        ("3%", 1000, 100, 30),
        ("0.1%", 1500, 100, 2),  # 1.5, half up
        ("0.1%", 1499, 100, 1),
        ("50%", 3, 1, 2),
        ("0", 0, 1, 0),
        ("end", 777, 10, 777),
        ("1000it", 1000, 1, 1000),
    ],
)
def test_at(text, total, per_epoch, iteration):
    assert Step.parse(text).at(total=total, per_epoch=per_epoch) == iteration


@given(decimals, st.integers(1, 10**6))
def test_a_share_is_exact_and_in_bounds(percent, total):
    iteration = Step(percent, "%").at(total=total, per_epoch=1)
    assert 0 <= iteration <= total
    assert abs(iteration - percent * total / 100) <= Fraction(1, 2)


@pytest.mark.parametrize("text", ["1001it", "10.1ep"])
def test_beyond_the_end_is_refused(text):
    with pytest.raises(UsageError, match="beyond the end of training at 1000"):
        Step.parse(text).at(total=1000, per_epoch=100)
    with pytest.raises(UsageError, match=rf"^latest {text} is iteration 10\d\d, beyond the end"):
        Step.parse(text).at(total=1000, per_epoch=100, of="latest")
    assert Step.parse(text).iterations(per_epoch=100) > 1000


def test_a_share_needs_a_length():
    with pytest.raises(UsageError, match="3% is a share of a length that is not given"):
        Step.parse("3%").iterations(per_epoch=10)
    assert Step.parse("3%").iterations(per_epoch=10, total=200) == 6
