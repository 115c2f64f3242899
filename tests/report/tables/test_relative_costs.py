"""What tickets cost relative to dense training, on made numbers."""

from __future__ import annotations

from typing import Any

from made_records import search_record
from ticketry.report import cost_lines, relative_costs


def phase(steps: int, flops: float | None, seconds: float, memory: int | None) -> dict[str, Any]:
    return {"steps": steps, "flops": flops, "seconds": seconds, "memory": memory}


NOTHING = phase(0, 0.0, 0.0, 0)


def record(*tickets: dict[str, Any], levels: tuple[int, ...] = (1,)) -> dict[str, Any]:
    dense = {"dense": phase(100, 1000.0, 5.0, 200), "search": NOTHING, "sparse": NOTHING}
    points = [point(0, "dense", cost=dense)]
    points += [point(level, "ticket", cost=cost) for level, cost in zip(levels, tickets, strict=True)]
    return {**search_record(levels=0), "points": points}


def point(level: int, role: str, **more: Any) -> dict[str, Any]:
    value = {"accuracy": 90.0}
    place = {"replicate": 0, "level": level, "role": role, "density": 0.5**level}
    return {**place, "validation": value, "test": value, **more}


COST = {"dense": phase(100, 1000.0, 5.0, 200), "search": phase(50, 400.0, 2.5, 240), "sparse": phase(50, 100.0, 1, 100)}


def test_sums_over_phases_and_the_highest_memory() -> None:
    (found,) = relative_costs(record(COST))
    assert found == {
        "replicate": 0,
        "level": 1,
        "steps": 2.0,
        "flops": 1.5,
        "memory": 1.2,
        "own_memory": 0.5,
        "seconds": 8.5,
    }


def test_what_is_not_known_is_not_told() -> None:
    unknown = COST | {"search": phase(50, None, 2.5, None)}
    (found,) = relative_costs(record(unknown))
    assert (found["flops"], found["memory"], found["own_memory"], found["steps"]) == (None, None, 0.5, 2.0)
    assert cost_lines(record(unknown))[2].split() == ["1", "50.0", "%", "2.00", "x", "–", "–", "0.50", "x", "8.50"]
    assert cost_lines({**record(COST), "points": [point(1, "ticket")]}) == []
