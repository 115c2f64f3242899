"""A size that stands for all numbers of examples answers only what is true of all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry_engine.capture.program import FEWEST, Examples, NotRecordedError

TRACED = 5
MANY = range(FEWEST, 60)

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
numbers = st.integers(-40, 40)
lines = st.tuples(st.integers(-6, 6).filter(bool), numbers)


def size(line: tuple[int, int]) -> Examples:
    return Examples(*line, TRACED)


def value(made: object, examples: int) -> object:
    """What a result is for another number of examples than the traced one."""
    return made.per_example * examples + made.more if isinstance(made, Examples) else made


def check(function: Callable[..., Any], *operands: Any) -> None:
    """Compare with plain integers, for every number of examples."""
    try:
        made = function(*(size(one) if isinstance(one, tuple) else one for one in operands))
    except (NotRecordedError, ZeroDivisionError):
        return
    for examples in MANY:
        plain = [one[0] * examples + one[1] if isinstance(one, tuple) else one for one in operands]
        if function in (operator.floordiv, operator.mod) and not plain[1]:
            continue  # a division by a size that is 0 for this number
        assert value(made, examples) == function(*plain), (function, operands, examples)


OTHERS = numbers | lines | st.floats(-40, 40)


@given(st.sampled_from([*ARITHMETIC, *COMPARISONS]), lines, OTHERS, st.booleans())
def test_an_answer_holds_for_every_number_of_examples(function, one, other, swapped):
    if isinstance(other, float) and (function in ARITHMETIC or swapped):
        other = int(other)  # Python compares a float on the left without asking the size
    check(function, *((other, one) if swapped else (one, other)))


def test_questions_that_models_ask_have_answers():
    batch = Examples(1, 0, TRACED)
    assert batch > 0
    assert batch >= 2
    assert batch != 1
    assert batch
    assert batch == Examples(1, 0, TRACED)
    assert batch * 6 // batch == 6
    assert (batch * 6 + 12) % 3 == 0
    assert isinstance(batch * 3 // 3 - batch, int)
    assert batch - batch == 0
    size = Examples(2, 1, TRACED)
    assert torch.zeros(33).view(size, 3).shape == (11, 3)
    assert isinstance(torch.Size([size, 3])[:1][0], Examples)


@pytest.mark.parametrize(
    "ask",
    [
        lambda batch: batch == 8,
        lambda batch: batch > 64,
        lambda batch: batch in {3, 4},
        lambda batch: batch // 2,
        lambda batch: batch % 2,
        lambda batch: batch * batch,
        lambda batch: 1 / batch,
        lambda batch: int(batch),
        lambda batch: float(batch),
        lambda batch: divmod(batch, 2),
        lambda batch: 7 // batch,
    ],
)
def test_questions_with_several_answers_are_refused(ask):
    with pytest.raises(NotRecordedError, match="the model asks for"):
        ask(Examples(1, 0, TRACED))
