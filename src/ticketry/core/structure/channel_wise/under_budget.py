"""Whole channels for a budget of latency, multiplications or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ticketry.core.budget import countable_parameters, parse_flops
from ticketry.core.costs.bases import EAGER, ENGINE
from ticketry.core.costs.budgets import METERS, Request
from ticketry.core.costs.granularity import CHANNELS
from ticketry.core.costs.weight_uses import times_used
from ticketry.core.mask import Mask
from ticketry.core.prune import budget_scores
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs
from ticketry.core.structure.channel_wise.choice import Choice
from ticketry.core.structure.channel_wise.path import ChannelOptions, ChannelPath
from ticketry.errors import UsageError


def check_budget(
    budgets: Mapping[str, float | str | None], base: str, density: object, sparsity: object
) -> tuple[str, float | str] | None:
    """Return the name and amount of the one budget that is given; None if a density is requested.

    Raises:
        UsageError: for several budgets, a budget beside a density, or a base without a latency budget.
    """
    given = [(name, amount) for name, amount in budgets.items() if amount is not None]
    if base != EAGER and "time" not in dict(given):
        raise UsageError(f"base={base!r} says what a share of the latency is of: give time= too, or leave base out")
    beside = [name for name, value in (("density", density), ("sparsity", sparsity)) if value is not None]
    if len(given) + len(beside) > 1:
        named = " and ".join([name for name, _ in given] + beside)
        raise UsageError(f"give one of density, sparsity, time, flops and bytes, not {named}")
    return given[0] if given else None


def channels_for(
    model: nn.Module,
    example_inputs: Any,
    unit: str,
    amount: float | str,
    *,
    base: str,
    score: str | Score | None,
    scope: Scope,
    within: Mask | None,
    inputs: ScoreInputs,
    options: ChannelOptions,
) -> Mask:
    """Return the mask of whole channels for a budget.

    Args:
        unit: time, flops or bytes.
        amount: a share of the unpruned model's, or of the base's latency, or an amount.
        score: of weights or channels; by default what the loss, or without one the outputs, would change by.
        inputs: that the score needs.
        options: how channels are chosen; other arguments are those of `channels`.
    """

    def by_weights() -> dict[str, Tensor]:
        if options.scores is not None:
            return {}
        return budget_scores(None, model, scope, within, inputs, CHANNELS, example_inputs)()

    if score is not None:

        def scored(choice: Choice) -> list[Tensor]:
            return choice.scores(within, inputs, score=score, reduce="sum")

        options = ChannelOptions(options.order, options.spare, options.known, scored)
    if unit == "flops":
        return _multiplications(model, example_inputs, amount, scope, within, options, by_weights)
    request = Request(
        model=model,
        example_inputs=example_inputs,
        scope=scope,
        unit="seconds" if unit == "time" else "bytes",
        amount=amount,
        scores=by_weights,
        structure=CHANNELS,
        within=within,
        base=base if unit == "time" else ENGINE,
        channels=options,
    )
    return METERS.get("engine")(request)


def _multiplications(
    model: nn.Module,
    example_inputs: Any,
    amount: float | str,
    scope: Scope,
    within: Mask | None,
    options: ChannelOptions,
    by_weights: Any,
) -> Mask:
    """Return the densest mask of whole channels with at most a share of the multiplications of the layers in scope."""
    share, parameters = parse_flops(amount), scope.parameters(model)
    prices = times_used(model, {name: parameters[name] for name in countable_parameters(model, scope)}, example_inputs)
    assert options.known is not None
    choice = Choice(model, options.known(), scope)
    if within is not None:
        choice.check_within(within)
    scores = options.scores(choice) if options.scores else choice.sums(by_weights())
    path = ChannelPath(choice, scores, {name: float(price) for name, price in prices.items()}, options.order, within)
    return path.mask(path.step_within(share * path.dense))
