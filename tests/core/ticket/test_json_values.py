from __future__ import annotations

import json
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry.core.ticket.folder import to_json_values
from ticketry.errors import TicketError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
).filter(lambda value: not (isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value)))
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abc"), inner, max_size=3))
)


@given(values)
def test_json_values_stay_as_they_are(value):
    assert to_json_values(value, "info") == value
    assert json.loads(json.dumps(to_json_values(value, "info"), allow_nan=False)) == value


def test_tuples_become_lists_and_keys_are_sorted():
    assert json.dumps(to_json_values({"b": (1, (2,)), "a": {}}, "info")) == '{"a": {}, "b": [1, [2]]}'


def test_the_result_is_a_copy():
    value = {"a": [1]}
    copied = to_json_values(value, "info")
    value["a"].append(2)
    assert copied == {"a": [1]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": [0, nan]}}, r"info\.a\.b\[1\] is not a number that JSON can hold"),
        ({"a": inf}, r"info\.a is not a number"),
        ({"a": -inf}, r"info\.a is not a number"),
        ({"a": 10**400}, r"info\.a is not a number"),
        ({"a": torch.ones(1)}, r"info\.a is a Tensor"),
        ({"a": b"bytes"}, r"info\.a is a bytes"),
        ({"a": {1, 2}}, r"info\.a is a set"),
        ({"a": {1: 2}}, r"info\.a has the key 1, which is not text"),
        ({"a": "\ud800"}, "not valid Unicode"),
        ({"\ud800": 1}, "not valid Unicode"),
    ],
)
def test_what_json_cannot_hold_is_refused(value, message):
    with pytest.raises(TicketError, match=message):
        to_json_values(value, "info")


def test_depth_is_bounded():
    value: list = []
    value.append(value)
    with pytest.raises(TicketError, match="nested more than 32 levels"):
        to_json_values(value, "info")


def test_messages_stay_short():
    for value in ({"k" * 10_000: nan}, {"k" * 10_000: object()}, {"k" * 10_000: {1: 1}}, {"k" * 10_000: "\ud800"}):
        with pytest.raises(TicketError) as caught:
            to_json_values(value, "info")
        assert len(str(caught.value)) < 300
