"""Damaged records are refused with what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from made_records import search_record, structured_record, with_rounds
from ticketry.errors import StoreError
from ticketry.records.run import read_run


def early() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "early_runs.json").read_text())[0]
    return record


def ticket(record: dict[str, Any], part: str) -> Any:
    return next(point[part] for point in record["points"] if point["role"] == "ticket")


@pytest.mark.parametrize(
    ("where", "change", "reason"),
    [
        ("moment", {"step": -1}, "less than 0"),
        ("moment", {"detected": "yes"}, "not true or false"),
        ("moment", {"looks": [[19]]}, "is not a step and a value"),
        ("moment", {"looks": [19]}, "is a number, not a list"),
        ("moment", {"threshold": None}, "is missing, not a number"),
        ("moment", {"looks": [[38, 1.0], [19, 1.0]]}, "not in the order of steps"),
        ("cost", {"dense": None}, "is missing, not an object"),
        ("cost", {"sparse": {"steps": 1, "seconds": -1.0}}, "is less than 0"),
        ("cost", {"sparse": {"steps": 1, "memory": -1}}, "less than 0"),
        ("cost", {"search": {"steps": 1.5}}, "not a whole number"),
        ("rounds", {"density": 1.2}, "does not lie in"),
        ("rounds", {"path": [[43]]}, "is not a step and a share"),
        ("rounds", {"path": [[43, 2.0]]}, "does not lie in"),
        ("rounds", {"path": [43]}, "is a number, not a list"),
        ("rounds", {"used": "yes"}, "not true or false"),
        ("rounds", {"round": 0}, "less than 1"),
        ("rounds", {"init": None}, "missing, not a number"),
        ("rounds", {"histogram": [-1] * 20}, "below 0"),
        ("rounds", {"histogram": []}, "is empty"),
        ("rounds", {"histogram": [1] * 19}, "different bins"),
        ("structure", {"density_before": 1.5}, "density_before is 1.5, which is no share"),
        ("fit", {"coverage": "much"}, "coverage is text, not a number"),
        ("picture", {"groups": [3, 4]}, "groups do not add up"),
        ("picture", {"before": "AAAA"}, "before is 3 bytes long"),
        ("picture", {"after": "?"}, "after is not base64"),
        ("picture", {"shape": [1 << 12, 1 << 12]}, "shape is not that of a picture"),
    ],
)
def test_what_is_wrong_in_a_record_is_named(where: str, change: dict[str, Any], reason: str) -> None:
    part: dict[str, Callable[[dict[str, Any]], Any]] = {
        "rounds": lambda record: record["rounds"][2],
        "fit": lambda record: ticket(record, "structure")["layers"][0],
        "picture": lambda record: ticket(record, "structure")["pictures"][0],
    }
    make = {"rounds": lambda: with_rounds(search_record(levels=2)), "moment": early, "cost": early}
    record = make.get(where, lambda: structured_record("damaged", levels=1))()
    part.get(where, lambda record: ticket(record, where))(record).update(change)
    with pytest.raises(StoreError, match=reason):
        read_run(record)
