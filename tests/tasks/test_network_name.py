"""Names of networks and their canonical form."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.errors import TaskError
from ticketry.tasks.network_name import NetworkName

widths = st.integers(1, 4_000_000).map(lambda millionths: Decimal(millionths).scaleb(-6))
"""All possible widths."""


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("resnet-20", "resnet-20"),
        ("resnet-20@0.50", "resnet-20@0.5"),
        ("resnet-20@.5", "resnet-20@0.5"),
        ("resnet-20@00.5000000000", "resnet-20@0.5"),
        ("resnet-20@1", "resnet-20"),
        ("conv-4@4.0", "conv-4@4"),
        ("lenet-300-100@0.000001", "lenet-300-100@0.000001"),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_every_spelling_has_one_form(text: str, canonical: str) -> None:
    assert str(NetworkName.parse(text)) == canonical
    assert str(NetworkName.parse(canonical)) == canonical


@given(widths)
def test_the_form_says_the_width_exactly(width: Decimal) -> None:
    name = NetworkName.parse(f"conv-4@{width:f}")
    assert name.width == Fraction(width)
    assert NetworkName.parse(str(name)) == name


@given(widths, st.integers(1, 5000))
def test_scaled_is_rounded_to_the_nearest_and_at_least_one(width: Decimal, units: int) -> None:
    expected = max(1, int((width * units).quantize(Decimal(1), ROUND_HALF_EVEN)))
    assert NetworkName.parse(f"conv-4@{width:f}").scaled(units) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "+1", "1e-1", "nan", "1/2", "4.000001", "0,5", "½", "٢", " 1", "1@1", "1_0"],
)
def test_wrong_widths(text: str) -> None:
    with pytest.raises(TaskError, match=r"a width is a number above 0 and up to 4, as in resnet-20@0\.5, not "):
        NetworkName.parse(f"conv-4@{text}")


def test_a_width_has_at_most_six_decimals() -> None:
    with pytest.raises(TaskError, match=r"conv-4@0\.0000001: a width has at most 6 decimals"):
        NetworkName.parse("conv-4@0.0000001")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keras:resnet18", "no network 'keras:resnet18': before the colon stands timm or torchvision"),
        (":resnet18", "before the colon stands timm or torchvision"),
        ("timm:resnet18@0.5", "only this package's own networks have a width; leave @0.5 out"),
    ],
)
def test_wrong_names(text: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        NetworkName.parse(text)
