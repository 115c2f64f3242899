"""Settings of verifications and stability analyses that cannot be are refused where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.evidence.control import check_controls, check_rivals
from ticketry.evidence.settings import VerifySettings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"margin": 0.0}, "a margin of 0.0: it must be above 0"),
        ({"margin": -1.0}, "a margin of -1.0"),
        ({"confidence": 95.0}, "a confidence of 95.0: it must lie between 0.5 and 1"),
        ({"least_spread": 0.0}, "a least spread of 0.0"),
        ({"claim": "wins", "controls": ("none",)}, "'wins' needs a control"),
        ({"seeds": 0}, "give at least 1"),
        ({"seeds": 3, "interim": (2, 3)}, "either interim or seeds"),
        ({"after": -1}, "after -1 seeds: give the number of seeds to skip"),
    ],
)
def test_before_anything_is_trained(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        VerifySettings(**settings)


def test_a_control_that_no_record_could_name() -> None:
    with pytest.raises(UsageError, match=r"dense_of_flops:lenet-300-100@0\.5: .* remove @0\.5"):
        check_controls(("shuffled", "dense_of_flops:lenet-300-100@0.5"))
    with pytest.raises(UsageError, match=r"remove @0\.5"):
        check_rivals(("dense_of_time:lenet-300-100@0.5",))
    check_controls(("dense_of_flops:lenet-300-100", "dense_of_time"))
    check_rivals(("dense_of_flops:lenet-300-100", "dense_of_time"))
