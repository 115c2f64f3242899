from __future__ import annotations

import pytest

from ticketry.core.gates import by_epoch, by_step, inverse_temperature
from ticketry.errors import UsageError


def test_by_step_and_by_epoch():
    """The paper's beta_T ^ (t / T), and the official code's 200 ^ (e / (E - 1))."""
    assert [by_step(step, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [by_epoch(epoch, 5) for epoch in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert by_epoch(0, 1) == 1
    assert 200 ** by_epoch(84, 85) == 200


@pytest.mark.parametrize(
    "call",
    [
        lambda: inverse_temperature(-0.1, 200),
        lambda: inverse_temperature(1.1, 200),
        lambda: inverse_temperature(float("nan"), 200),
        lambda: inverse_temperature(0.5, 0.5),
        lambda: inverse_temperature(0.5, 1e13),
        lambda: by_step(5, 4),
        lambda: by_step(-1, 4),
        lambda: by_epoch(5, 5),
    ],
)
def test_outside(call):
    with pytest.raises(UsageError):
        call()
