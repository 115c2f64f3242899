"""Verdicts of claims against the tests of shifted pairs, and against Student's interval."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as part
from scipy import stats

from made_records import search_record
from ticketry.errors import UsageError
from ticketry.evidence.comparison import InterimAnalyses, compare, seeds_needed
from ticketry.experiments.reproduce.blocks import Block, next_blocks, order_by_decisions
from ticketry.experiments.reproduce.campaign_file import Hypothesis, Side
from ticketry.experiments.reproduce.claims import decide_claims, family_size_by_claim
from ticketry.records.evidence import Curve, Distances, StabilityRecord, StabilityRow
from ticketry.records.network import Phase, Phases
from ticketry.records.run import RunRecord, read_run

CLAIM = Hypothesis(
    name="better",
    statement="A is better.",
    source="",
    figure="",
    a=Side("one", "ticket", 1),
    b=Side("other", "ticket", 1),
    density=0.1,
    metric="accuracy",
    unit="%",
    higher_is_better=True,
    above=0.0,
    margin=0.5,
    confidence=0.95,
    family="all",
    plan=InterimAnalyses((5,)),
)


def block(values: list[float], metric: str = "accuracy") -> RunRecord:
    """A block of replicates whose tickets of level 1 have these values."""
    record: dict[str, Any] = search_record(levels=1, replicates=1)
    record["replicates"], record["points"], record["verdicts"] = len(values), [], []
    record["task"]["metric"]["name"] = metric
    for replicate, value in enumerate(values):
        common = {"replicate": replicate, "validation": {metric: 0.0}}
        record["points"] += [
            {**common, "level": 0, "role": "dense", "density": 1.0, "test": {metric: value - 1}},
            {**common, "level": 1, "role": "ticket", "density": 0.1, "test": {metric: value}},
        ]
    return read_run(record)


A = [91.2, 91.6, 91.9, 91.4, 91.5]
B = [87.1, 88.0, 87.3, 87.9, 87.2]
ONE_LOOK = CLAIM.plan


def decided(claim: Hypothesis, a: list[list[float]], b: list[list[float]], plan: InterimAnalyses) -> Any:
    records = {
        "one": [block(values, claim.metric) for values in a],
        "other": [block(values, claim.metric) for values in b],
    }
    return decide_claims([replace(claim, plan=plan)], records, {"one": 0.01, "other": 0.01})[0]


@pytest.mark.parametrize("above", [0.0, 3.0, -0.5, 4.0])
def test_p_values_are_those_of_the_shifted_pairs(above: float) -> None:
    found = decided(replace(CLAIM, above=above), [A], [B], ONE_LOOK).to_record(0.0)
    shifted = compare(A, [value + above for value in B], margin=0.5, resolution=0.01, least_spread=0.5)
    assert found.p_confirmed == pytest.approx(shifted.p_superior)
    assert found.p_refuted == pytest.approx(shifted.p_worse)
    differences = [one - other for one, other in zip(A, B, strict=True)]
    assert found.difference == pytest.approx(sum(differences) / 5)
    assert found.interval == pytest.approx(
        stats.t.interval(0.95, 4, loc=sum(differences) / 5, scale=stats.sem(differences))
    )


@pytest.mark.parametrize(
    ("above", "found"), [(0.0, "confirmed"), (3.0, "confirmed"), (4.0, "undecided"), (8.0, "refuted")]
)
def test_the_higher_one_wins_and_of_what_is_better_when_less_the_lower_one(above: float, found: str) -> None:
    lower = replace(CLAIM, metric="rmse", unit="", higher_is_better=False, above=above)
    assert decided(replace(CLAIM, above=above), [A], [B], ONE_LOOK).found == found
    assert decided(lower, [B], [A], ONE_LOOK).found == found
    for claim, worse, better in ((CLAIM, B, A), (replace(lower, above=0.0), A, B)):
        assert decided(claim, [worse], [better], ONE_LOOK).found == "refuted"


def test_the_dense_network_is_a_side() -> None:
    claim = replace(CLAIM, b=Side("one", "dense", 0), above=0.5)
    found = decided(claim, [A], [], ONE_LOOK)
    assert found.b == tuple(value - 1 for value in A)
    assert found.n == 5


def test_only_planned_numbers_of_replicates_are_judged_and_they_are_paid_for() -> None:
    plan = InterimAnalyses((3, 10))
    assert decided(CLAIM, [A[:2]], [B[:2]], plan).verdict is None
    found = decided(CLAIM, [A[:3], A[3:]], [B[:3], B[3:]], plan)
    assert found.n == 3
    alone = decided(CLAIM, [A[:3]], [B[:3]], InterimAnalyses((3,)))
    assert found.verdict.p_as_good == pytest.approx(min(1.0, alone.verdict.p_as_good / (3 / 10) ** 3))


def test_claims_of_a_family_are_corrected_together_and_others_not() -> None:
    records = {"one": [block(A)], "other": [block(B)]}
    claims = [replace(CLAIM, name=f"claim {number}", above=2.8 + 0.01 * number) for number in range(6)]
    alone = decide_claims(claims[:1], records, {})[0].to_record(0.0)
    together = decide_claims(claims, records, {})[0].to_record(0.0)
    apart = decide_claims([replace(claim, family=claim.name) for claim in claims], records, {})[0].to_record(0.0)
    assert together.p_confirmed == pytest.approx(6 * alone.p_confirmed)
    assert apart.p_confirmed == alone.p_confirmed


def test_more_replicates_decide_what_holds_by_itself_and_not_yet_in_its_family() -> None:
    plan = InterimAnalyses((5, 10))
    runs = [A, [value + 0.1 for value in A]], [B, [value + 0.2 for value in B]]
    claims = [replace(CLAIM, name=f"claim {number}", above=2.6, plan=plan) for number in range(4)]

    def found(blocks: int) -> Any:
        records = {"one": list(map(block, runs[0][:blocks])), "other": list(map(block, runs[1][:blocks]))}
        return decide_claims(claims[:1], records, {})[0], decide_claims(claims, records, {})[0]

    (alone, early), (_, late) = found(1), found(2)
    assert (alone.found, early.found, early.n) == ("confirmed", "undecided", 5)
    assert (late.found, late.n) == ("confirmed", 10)
    # of each analysis by itself the p-value, divided by its share of alpha; of these the smaller
    differences = [one - other for one, other in zip(*map(itertools.chain.from_iterable, runs), strict=True)]
    shares = plan.alphas(1.0)
    each = [compare(differences[:n], [2.6] * n, margin=0.5, least_spread=0.5).p_superior / shares[n] for n in plan.at]
    assert late.to_record(0.0).p_confirmed == pytest.approx(4 * min(each))


def test_more_that_is_needed_is_by_what_the_plan_leaves_for_the_last_analysis() -> None:
    plan = InterimAnalyses((5, 10))
    near = [b + 0.5 * gap for b, gap in zip(B, (1, -1, 2, 0, 1), strict=True)]
    (alone,) = decide_claims([replace(CLAIM, plan=plan)], {"one": [block(near)], "other": [block(B)]}, {})
    (once,) = decide_claims([CLAIM], {"one": [block(near)], "other": [block(B)]}, {})
    gap = [a - b for a, b in zip(near, B, strict=True)]
    for found, alpha, least in ((alone, 0.05 * (1 - 0.5**3), 10), (once, 0.05, 0)):
        needed = seeds_needed(np.mean(gap), np.std(gap, ddof=1), alpha, least_spread=0.5)
        assert needed is not None
        assert found.to_record(0.0).more == max(needed, least) - 5
    assert (alone.verdict and alone.verdict.next_analysis, once.verdict and once.verdict.next_analysis) == (10, None)


def test_a_claim_without_runs_counts_in_its_family() -> None:
    records = {"one": [block(A)], "other": [block(B)]}
    waiting = replace(CLAIM, name="waiting", a=Side("third", "ticket", 1))
    found = decide_claims([CLAIM, waiting], records, {})
    alone = decide_claims([CLAIM], records, {})[0].to_record(0.0)
    assert found[0].to_record(0.0).p_confirmed == pytest.approx(2 * alone.p_confirmed)
    assert (found[1].found, found[1].n) == ("undecided", 0)


def test_what_most_undecided_claims_need_comes_first() -> None:
    plan = InterimAnalyses((3, 5))
    claim = replace(CLAIM, plan=plan)
    third = replace(claim, name="third", b=Side("third", "ticket", 1), family="third")
    found = decide_claims([claim, third], {}, {})
    assert list(next_blocks(found, {})) == [Block("one", 0, 0, 3), Block("other", 0, 0, 3), Block("third", 0, 0, 3)]
    assert next_blocks(found, {})[Block("one", 0, 0, 3)] == ("better", "third")
    later = next_blocks(found, {"one": 1, "other": 1})
    assert list(later) == [Block("one", 1, 3, 5), Block("other", 1, 3, 5), Block("third", 0, 0, 3)] or list(later) == [
        Block("third", 0, 0, 3),
        Block("one", 1, 3, 5),
        Block("other", 1, 3, 5),
    ]


def test_what_decides_most_claims_an_hour_comes_first() -> None:
    shared, one, other, alone = (Block(name, 0, 0, 3) for name in ("shared", "one", "other", "alone"))
    waiting = {shared: ("a", "b", "c"), one: ("a", "b"), other: ("c",), alone: ("d",)}

    def order(**hours: float) -> list[Block]:
        found = order_by_decisions(waiting, lambda blocks: sum(hours[block.run] for block in blocks))
        assert found == waiting
        return list(found)

    # two claims in four hours; then one more in an hour; then one in three
    assert order(shared=3, one=1, other=1, alone=3) == [shared, one, other, alone]
    # one in an hour goes before two in four; what many need is not first where it takes long
    assert order(shared=3, one=1, other=1, alone=1) == [alone, shared, one, other]
    # what waits for a block that is carried out anyhow is cheap afterwards
    assert order(shared=9, one=1, other=30, alone=4) == [alone, shared, one, other]
    assert order(shared=9, one=30, other=1, alone=4) == [alone, shared, other, one]
    assert order(shared=0, one=0, other=0, alone=0)[-1] == alone


def test_what_is_decided_or_at_the_limit_needs_nothing() -> None:
    records = {"one": [block(A)], "other": [block(B)]}
    done = {"one": 1, "other": 1}
    assert next_blocks(decide_claims([CLAIM], records, {}), done) == {}
    undecided = decide_claims([replace(CLAIM, above=4.0)], records, {})
    assert undecided[0].found == "undecided"
    assert next_blocks(undecided, done) == {}
    assert undecided[0].to_record(0.0).more is None or undecided[0].to_record(0.0).more > 0


def analysis(heights: list[float], apart: list[float]) -> StabilityRecord:
    """A block of replicates whose tickets of level 1 have these barriers and distances."""
    rows = tuple(
        StabilityRow(
            replicate=replicate,
            step=0,
            level=1,
            density=0.1,
            role="ticket",
            value=90.0,
            pruning=Distances(10 * l2, None),
            data_order=Distances(l2, None),
            barriers=(Curve("test", 0, height, (0.0, 0.5, 1.0), (0.0, height, 0.0)),),
        )
        for replicate, (height, l2) in enumerate(zip(heights, apart, strict=True))
    )
    task = block([1.0]).task
    return StabilityRecord(
        name="one", task=task, rewinds=(), total_steps=1, replicates=len(heights), rows=rows, settings={}
    )


STABLE = replace(CLAIM, metric="barrier", higher_is_better=False, b=Side("", "number", None, 2.0))


@pytest.mark.parametrize(
    ("heights", "found"),
    [
        ([0.1, 0.3, 0.2, 0.0, 0.1], "confirmed"),
        ([6.0, 7.5, 6.2, 5.9, 8.0], "refuted"),
        ([1.9, 2.2, 2.1, 1.8, 2.0], "undecided"),
    ],
)
def test_a_barrier_against_a_number(heights: list[float], found: str) -> None:
    stable = {"one": [analysis(heights[:3], [1, 1, 1]), analysis(heights[3:], [1, 1])]}
    judged = decide_claims([STABLE], {}, {}, stable)[0]
    assert judged.found == found
    told = judged.to_record(0.0)
    assert told.difference == pytest.approx(2 - sum(heights) / 5)
    assert told.b.values == (2.0,) * 5
    other_way = replace(STABLE, a=STABLE.b, b=STABLE.a)
    opposite = {"confirmed": "refuted", "refuted": "confirmed", "undecided": "undecided"}
    assert decide_claims([other_way], {}, {}, stable)[0].found == opposite[found]


def test_a_barrier_is_that_of_the_test_split_in_whatever_order_splits_are_told() -> None:
    test, train = analysis([0.1, 0.3, 0.2, 0.0, 0.1], [1] * 5), Curve("train", 0, 9.0, (0.0, 0.5, 1.0), (0.0, 9.0, 0.0))
    for first in (True, False):
        rows = [part(row, barriers=(train, *row.barriers) if first else (*row.barriers, train)) for row in test.rows]
        judged = decide_claims([STABLE], {}, {}, {"one": [part(test, rows=tuple(rows))]})[0]
        assert judged.found == "confirmed"
        assert judged.a == (0.1, 0.3, 0.2, 0.0, 0.1)
    bare = Curve("test", 0, 9.0, (0.0, 0.5, 1.0), (0.0, 9.0, 0.0))  # recomputed statistics go first, as on pages
    both = [part(row, barriers=(bare, part(row.barriers[0], recalibrated=20))) for row in test.rows]
    assert decide_claims([STABLE], {}, {}, {"one": [part(test, rows=tuple(both))]})[0].a == (0.1, 0.3, 0.2, 0.0, 0.1)
    alone = [part(row, barriers=(train,)) for row in test.rows]
    assert decide_claims([STABLE], {}, {}, {"one": [part(test, rows=tuple(alone))]})[0].a == (9.0,) * 5


def test_distances_are_better_the_lower() -> None:
    stable = {"one": [analysis([0] * 5, [3, 4, 3, 4, 3])], "other": [analysis([0] * 5, [9, 8, 9, 9, 8])]}
    order = replace(CLAIM, metric="order-distance", higher_is_better=False)
    assert decide_claims([order], {}, {}, stable)[0].to_record(0.0).difference == pytest.approx(8.6 - 3.4)
    pruning = replace(order, metric="pruning-distance")
    judged = decide_claims([pruning], {}, {}, stable)[0]
    assert judged.to_record(0.0).difference == pytest.approx(86 - 34)
    assert judged.found == "confirmed"


def test_distances_have_no_smallest_step() -> None:
    """What a test split of 360 examples resolves, 0.28 points of accuracy, says nothing about their spread."""
    near, far = [1.0, 1.01, 0.99, 1.0, 1.01], [1.1, 1.12, 1.08, 1.11, 1.1]
    stable = {"one": [analysis([0] * 5, near)], "other": [analysis([0] * 5, far)]}
    close = replace(CLAIM, metric="order-distance", higher_is_better=False, margin=0.01)
    judged = decide_claims([close], {}, {"one": 100 / 360, "other": 100 / 360}, stable)[0]
    assert judged.found == "confirmed"


def test_densities_and_memory_are_better_the_lower_and_what_was_not_measured_decides_nothing() -> None:
    records = {"one": [block(A)], "other": [block(B)]}
    denser = part(records["other"][0].points[1], density=0.3)
    points = tuple(part(denser, replicate=one.replicate) if one.role == "ticket" else one for one in block(B).points)
    records["other"] = [part(block(B), points=points)]
    density = replace(CLAIM, metric="density", higher_is_better=False, margin=0.01)
    assert decide_claims([density], records, {})[0].to_record(0.0).difference == pytest.approx(0.2)
    assert decide_claims([density], records, {})[0].found == "confirmed"
    memory = replace(CLAIM, metric="memory", higher_is_better=False)  # these records do not tell it
    assert (decide_claims([memory], records, {})[0].n, decide_claims([memory], records, {})[0].found) == (
        0,
        "undecided",
    )


def costing(name: str, values: list[float], **costs: float) -> RunRecord:
    of, nothing = Phase(steps=10, **costs), Phase(steps=0)  # type: ignore[arg-type]
    made = block(values)
    told = Phases(dense=nothing, search=nothing, sparse=of)
    points = [part(one, phases=told) if one.role == "ticket" else one for one in made.points]
    return part(made, name=name, points=tuple(points))


@pytest.mark.parametrize(("metric", "unit"), [("steps", "steps"), ("flops", "FLOPs"), ("memory", "B")])
def test_costs_that_are_counted_decide_where_every_replicate_needs_the_same(metric: str, unit: str) -> None:
    few, many = ({"flops": scale * 1e9, "memory": scale * 1000} for scale in (1, 2))
    records = {"one": [costing("one", A, **few)], "other": [costing("other", B, **many)]}
    claim = replace(CLAIM, metric=metric, unit=unit, higher_is_better=False)
    found = decide_claims([claim], records, {})[0]
    assert found.found == ("undecided" if metric == "steps" else "confirmed")
    assert decide_claims([replace(claim, a=claim.b, b=claim.a)], records, {})[0].found == (
        "undecided" if metric == "steps" else "refuted"
    )


def test_replicates_are_asked_for_no_more_where_one_before_was_not_measured() -> None:
    """The fourth has no FLOPs: three are judged, and there is no next analysis, which would have to pass it over."""
    plan = InterimAnalyses((3, 5))
    few, many = (costing(name, A[:3], flops=flops) for name, flops in (("one", 1e9), ("other", 1.0000000004e9)))
    records = {"one": [few], "other": [many]}
    done = {"one": 1, "other": 1}
    claim = replace(CLAIM, metric="flops", unit="FLOPs", higher_is_better=False, margin=1.0, plan=plan)
    before = decide_claims([claim], records, {})
    assert list(next_blocks(before, done)) == [Block("one", 1, 3, 5), Block("other", 1, 3, 5)]
    after = decide_claims(
        [claim], {"one": [few, block(A[3:])], "other": [many, costing("other", B[3:], flops=2e9)]}, {}
    )
    told = after[0].to_record(0.0)
    assert (told.found, told.n, told.unknown) == (
        "undecided",
        3,
        "no flops is known of the ticket of one in replicate 4",
    )
    assert next_blocks(after, {"one": 2, "other": 2}) == next_blocks(after, done) == {}
    decided = decide_claims(
        [replace(claim, above=-1e6)], {"one": [few, block(A[3:])], "other": [many, block(B[3:])]}, {}
    )
    assert (decided[0].found, decided[0].to_record(0.0).unknown) == ("confirmed", "")


def test_a_network_that_a_record_lacks_is_told() -> None:
    with pytest.raises(UsageError, match=r"better: .* has no shuffled of level 1 for replicate 0"):
        decide_claims([replace(CLAIM, b=Side("other", "shuffled", 1))], {"one": [block(A)], "other": [block(B)]}, {})


def test_a_replication_keeps_the_family_size_of_the_claim_that_it_repeats() -> None:
    """Of seven claims one is repeated, in a family of its own, and that once more: each against Holm by hand."""
    claims = [replace(CLAIM, name=f"first {number}", family="first", plan=ONE_LOOK) for number in range(7)]
    again = replace(CLAIM, name="again", family="second", again="first 3", plan=ONE_LOOK)
    third = replace(CLAIM, name="third", family="third", again="again", plan=ONE_LOOK)
    fresh = replace(CLAIM, name="fresh", family="second", plan=ONE_LOOK)
    every = [*claims, again, third, fresh]
    assert family_size_by_claim(every) == [7] * 7 + [7, 7, 2]
    records = {"one": [block(A)], "other": [block(B)]}
    found = {one.claim.name: one.verdict for one in decide_claims(every, records, {"one": 0.01, "other": 0.01})}
    alone = compare(A, B, margin=0.5, resolution=0.01, least_spread=0.5).p_superior
    assert 7 * alone < 1
    for name, size in (("first 0", 7), ("again", 7), ("third", 7), ("fresh", 2)):
        verdict = found[name]
        assert verdict is not None
        assert verdict.p_as_good == pytest.approx(size * alone)
