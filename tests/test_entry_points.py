"""Every public function that takes a model: each kind of model and each state of torch gives the plain result, or says
what to do."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import entry_points as table
from ticketry.errors import TicketryError


@functools.cache
def _expected(name: str) -> list[Any]:
    return table.leaves(table.outcome(name, table.plain(), contextlib.nullcontext))


def _require_equal(found: list[Any], expected: list[Any], kind: str = "") -> None:
    """Require the same results; gradients of frozen weights are missing, and weights stay those of inference mode."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if kind == "frozen" and one is None:
            continue
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype
            assert one.device == other.device
            assert not one.is_inference() or kind == "created in inference mode"
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-6, atol=1e-6)
        else:
            assert one == other


def test_every_public_function_is_in_the_table() -> None:
    called = {name.partition(",")[0] for name in table.CALLS}
    assert table.public_functions() == called | table.NOT_CALLED.keys()


@pytest.mark.parametrize("name", table.CALLS)
def test_plain_call_works(name: str) -> None:
    assert _expected(name)


@pytest.mark.parametrize("state", table.STATES)
@pytest.mark.parametrize("name", table.CALLS)
def test_state_of_torch_changes_nothing(name: str, state: str) -> None:
    found = table.outcome(name, table.plain(), table.STATES[state])
    _require_equal(table.leaves(found), _expected(name))


@pytest.mark.parametrize("kind", table.SAME)
@pytest.mark.parametrize("name", table.CALLS)
def test_the_same_model_in_another_form(name: str, kind: str) -> None:
    given = table.SAME[kind]()
    try:
        found = table.outcome(name, given, contextlib.nullcontext)
    except TicketryError as error:
        _require_advice(error)
    else:
        _require_equal(table.leaves(found), _expected(name), kind)


@pytest.mark.parametrize("kind", table.OTHERS)
@pytest.mark.parametrize("name", table.CALLS)
def test_other_models_work_or_are_refused(name: str, kind: str) -> None:
    given = table.OTHERS[kind]()
    try:
        table.outcome(name, given, contextlib.nullcontext)
    except TicketryError as error:
        _require_advice(error)


def _require_advice(error: TicketryError) -> None:
    """A message says what is wrong, and behind that what to do; torch's own words are no more than a part of it."""
    text = str(error)
    assert ":" in text or ";" in text
    assert "Traceback" not in text
