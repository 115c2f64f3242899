"""The rounds of gates in a run record, read into types."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.report.nodes import Node


@dataclass(frozen=True)
class GateRound:
    """One training with gates, from which a mask comes or which was tried on the way to one."""

    replicate: int
    level: int
    """Of the ticket that it was trained for."""
    used: bool
    """Whether that ticket has its mask; if not, it was a try."""
    number: int
    """Of the round, from 1 on."""
    init: float
    penalty: float
    steps: int
    density: float
    """Share of the gates that are on at the end."""
    path: tuple[tuple[float, float], ...]
    """(step, share of the gates that are on) on the way."""
    histogram: tuple[float, ...]
    """Gates by how far they are open at the end, in equal bins from 0 to 1."""
    hard: float
    """The task's metric on the validation split, of the hard network."""
    soft: float
    """The same of the network with soft gates."""


def read_rounds(root: Node, metric: str) -> tuple[GateRound, ...]:
    """The rounds of a record; empty where it has none."""
    found = tuple(_round(node, metric) for node in root.nodes("rounds", optional=True))
    if len({len(one.histogram) for one in found}) > 1:
        root.fail("rounds", "have histograms of different bins")
    return found


def _round(node: Node, metric: str) -> GateRound:
    path = tuple(_place(node, index, item) for index, item in enumerate(node.items("path")))
    histogram = node.numbers("histogram")
    if not histogram or any(count < 0 for count in histogram):
        node.fail("histogram", "is empty or has a count below 0")
    return GateRound(
        replicate=node.integer("replicate", least=0),
        level=node.integer("level", least=0),
        used=node.boolean("used"),
        number=node.integer("round", least=1),
        init=node.number("init"),
        penalty=node.number("penalty"),
        steps=node.integer("steps", least=0),
        density=_share(node, "density", node.number("density")),
        path=path,
        histogram=histogram,
        hard=node.node("validation").number(metric),
        soft=node.node("soft_validation").number(metric),
    )


def _place(node: Node, index: int, item: tuple[float, ...]) -> tuple[float, float]:
    where = f"path[{index}]"
    if len(item) != 2 or item[0] < 0:
        node.fail(where, "is not a step and a share")
    return item[0], _share(node, where, item[1])


def _share(node: Node, where: str, share: float) -> float:
    if not 0 <= share <= 1:
        node.fail(where, f"is {share:g}, which does not lie in [0, 1]")
    return share
