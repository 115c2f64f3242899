"""Functions that methods share: choose prunable parameters, choose a mask, prune once and continue training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar

from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.errors import UsageError
from ticketry.lab.search_result import GRADUAL, Found, Structured
from ticketry.records.network import Moment
from ticketry.search.common.settings import COUNTED, MEASURED, PruningSettings, ScoreSettings
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.common.method import Replicate


# -- what is pruned ----------------------------------------------------------------------------------------------------


def prunable_scope(replicate: Replicate, settings: PruningSettings) -> Scope:
    """Return the parameters that may be pruned; raise `UsageError` if pruning these cannot meet the settings.

    The latter is so if `half_rate` names an unpruned layer, if layers or groups of channels cannot retain their minimum
    at the smallest density, or if the smallest allowed mask costs more than the budget.
    """
    from ticketry.core.allocate import check_layer_minimum
    from ticketry.core.scope import match_half_rate_names, scope
    from ticketry.core.structure.channel_masks import check_channel_density
    from ticketry.core.structure.layout import layouts

    lab, task, shape = replicate.lab, replicate.task, settings.parsed_structure
    model = lab.model(task)
    chosen = scope(
        model,
        spare=settings.spare,
        output=not settings.spare_output,
        first_conv=not settings.spare_first_conv,
        embeddings=settings.embeddings,
    )
    least = getattr(settings, "keep_at_least", 0)
    if shape.channels:
        # Not for a minimum of one channel: tracing the network takes seconds, and pruning reports the error too.
        if least > 1:
            check_channel_density(
                model,
                lab.structure(task),
                settings.targets[-1],
                scope=chosen,
                keep_at_least=least,
                multiple=shape.multiple,
            )
    else:
        match_half_rate_names(chosen, getattr(settings, "half_rate", ()))
        pattern = shape.parsed_pattern
        if least and not settings.budget:
            known = None if pattern.unstructured else layouts(model, chosen)
            check_layer_minimum(chosen.shapes, settings.targets[-1], least, pattern=pattern, layouts=known)
    if settings.budget:
        _check_budget_can_be_met(replicate, chosen, settings, least)
    return chosen


def _check_budget_can_be_met(replicate: Replicate, scope: Scope, settings: PruningSettings, least: int) -> None:
    """Raise `UsageError` if the smallest allowed mask costs more than the budget, or a layer has no known cost."""
    from ticketry.budgets.allocation import check_floor, check_floor_of_costs
    from ticketry.core.allocate import count_candidates
    from ticketry.lab.masks import check_new_costs, macs_per_weight, store_costs

    budget = settings.budget
    assert budget is not None
    share = min(budget.shares)
    least = least or int(settings.spends_budget_by_importance or getattr(settings, "collapse", "raise") == "keep")
    if budget.kind in MEASURED:
        costs = budget.read_costs()
        if budget.measured:
            check_new_costs(replicate.lab, costs)
        store_costs(replicate.lab, replicate.task, costs, scope)
        # A budget below the cost of empty layers could not be read as a share.
        check_floor_of_costs(costs, count_candidates(scope.shapes, None), share * costs.dense, least)
        return
    prices = macs_per_weight(replicate.lab, replicate.task, scope)
    check_floor(scope.sizes, prices, share, least=least, what=COUNTED[budget.kind])


def require_norm_scales(replicate: Replicate, scope: Scope) -> None:
    """Raise `UsageError`, naming the layer, unless a norm with a scale follows every prunable channel."""
    from ticketry.core.structure.channel_choice import removable_group_positions

    lab, task = replicate.lab, replicate.task
    structure = lab.structure(task)
    for position in removable_group_positions(structure, scope):
        group = structure.groups[position]
        if not any(member.name in structure.roles.scales for member in group.parameters):
            raise UsageError(
                f"channels are chosen by the scales of their norms, and those of {group.name} pass no norm: leave it"
                f" out (--spare {group.name}), or choose a network with norms behind every layer, such as resnet-20"
            )


# -- scores ------------------------------------------------------------------------------------------------------------

CHANNEL_WISE_SCORES = {"crop": "crop_gates", "snip": "snap"}
"""Name of a score of single weights -> name of its published form for whole channels."""


def check_score_setting(settings: ScoreSettings) -> None:
    """Raise `UsageError`, before anything is trained, if the score is unknown or does not suit the other settings."""
    from ticketry.core.score import about, get, names, split_control
    from ticketry.core.structure import apply
    from ticketry.core.structure.channel_scores import CHANNEL_SCORES, check_channel_score

    control, plain = split_control(settings.score)
    if settings.parsed_structure.channels:
        check_channel_score(_channel_wise_variant_of_score(settings.score))
    elif plain in CHANNEL_SCORES and plain not in names():
        raise UsageError(
            f"score {settings.score!r} ranks whole channels: add --structure channels (structure='channels')"
        )
    else:
        get(settings.score)
        if settings.budget and settings.ranks_by_score_per_cost and (control == "inverted" or about(plain).signed):
            raise UsageError(
                f"score {settings.score!r} may be below 0, and cannot be weighed against what weights cost: take"
                f" another for {settings.budget.kind}, or the highest scores whatever they cost (--unweighed,"
                " unweighed=True)"
            )
    if settings.parsed_structure.tickets is not None:
        apply.check_structure_score(settings.parsed_structure.tickets)


def _channel_wise_variant_of_score(score: str) -> str:
    from ticketry.core.score import split_control

    control, plain = split_control(score)
    named = CHANNEL_WISE_SCORES.get(plain, plain)
    return f"{control}:{named}" if control else named


# -- masks -------------------------------------------------------------------------------------------------------------


def prune(
    replicate: Replicate,
    trained: Result,
    scope: Scope,
    density: float,
    settings: ScoreSettings,
    *,
    within: str | None = None,
    **more: Any,
) -> str:
    """Choose a mask by the score of the settings, store the mask, and return the mask's digest (cached).

    Args:
        density: density of the mask, or its share of the dense cost if the settings have a budget.
        within: digest of an earlier mask; weights that it removes stay removed.
        more: further arguments of `Lab.prune`. By default a score that needs examples gets a `Sample` of the training
            split.
    """
    from ticketry.core.score import about, split_control
    from ticketry.core.structure.channel_scores import CHANNEL_ONLY
    from ticketry.lab.costs.ledger import Sample

    seeds, shape, score = replicate.seeds, settings.parsed_structure, settings.replacing_score or settings.score
    plain = split_control(score)[1]
    needed = (CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain)).data
    if needed == "no":
        more.pop("sample", None)
    elif needed == "shapes":
        more["sample"] = Sample(1, 1, seeds.mask)  # further examples would only cost time
    else:
        more.setdefault("sample", Sample(seed=seeds.mask))
    if settings.keep_at_least:
        more.setdefault("keep_at_least", settings.keep_at_least)
    more |= {"distribution": settings.distribution, "within": within}
    if settings.budget:
        more |= {"score": score, "weighed": not settings.unweighed}
        if shape.granularity:
            more["structure"] = shape.granularity
        if settings.spends_budget_by_importance:
            more["by_value"] = True
    elif shape.channels:
        more |= {"structured": True, "score": _channel_wise_variant_of_score(settings.score)}
        if shape.multiple != 1:
            more["multiple"] = shape.multiple
    else:
        more |= {"score": settings.score, "half_rate": settings.half_rate}
        if shape.pattern != UNSTRUCTURED:  # masks are remembered since before there were patterns
            more["pattern"] = shape.pattern
    return store_chosen_mask(replicate, trained, scope, density, settings.budget_cache_key, **more)


def store_chosen_mask(
    replicate: Replicate, weights: Result, scope: Scope, share: float, terms: str = "", **chosen: Any
) -> str:
    """Choose a mask of a given density or cost, store the mask, and return the mask's digest (cached).

    Args:
        share: density of the mask, or its share of the dense cost if `terms` are given.
        terms: `Budget.cache_key` of a cost budget; empty without a budget.
        chosen: further arguments of `Lab.prune`, or with `terms` of `lab.masks.budget_mask`.
    """
    from ticketry.lab.masks import budget_mask

    lab, task, seed = replicate.lab, replicate.task, replicate.seeds.mask
    if not terms:
        return lab.prune(task, weights, scope, density=share, seed=seed, **chosen)
    return budget_mask(lab, task, weights, scope, terms=terms, share=share, seed=seed, **chosen)


def apply_ticket_structure(
    replicate: Replicate, weights: Result, mask: str, settings: PruningSettings
) -> tuple[str, Structured | None]:
    """Apply the structure that the settings require of tickets to a search's mask; return (new digest, description).

    If the settings require none, return `mask` and None.
    """
    from ticketry.lab.masks import structured_mask

    if (by := settings.parsed_structure.tickets) is None:
        return mask, None
    derived = structured_mask(replicate.lab, replicate.task, weights, mask, by, replicate.seeds)
    return derived, Structured(of=mask, weights=weights.model, by=by)


# -- pruning once and training on --------------------------------------------------------------------------------------


def parse_pruning_step(whole: Segment, until: str, what: str, them: str) -> int:
    """Parse the step at which a training is pruned; raise `UsageError` if it is the first or last step.

    The error message needs `what`, a clause about the time before pruning (such as "gates are trained"), and `them`,
    the pronoun for the subject of that clause.
    """
    step = whole.at(until, "until")
    if not 0 < step < whole.total:
        raise UsageError(
            f"{what} until {until}, step {step} of {whole.total}: there must be steps with {them}, and steps"
            f" after {them} to train what is left"
        )
    return step


def prune_once(
    replicate: Replicate,
    scope: Scope,
    steps: Mapping[float, int],
    settings: ScoreSettings,
    *,
    moments: Mapping[float, Moment] | None = None,
    **how: Any,
) -> Iterator[Found]:
    """Yield the dense network, then, for each density, a network that is pruned once and trained to the end.

    Args:
        steps: density -> the step at which the network is pruned to that density; the densest first.
        moments: density -> the measurements by which its pruning step was detected; None if no step was detected.
    """
    if (last := replicate.dense_training.total) in steps.values():
        raise UsageError(f"cut at step {last} of {last} nothing is left to train: cut earlier")
    found = replicate.train_dense(*sorted(set(steps.values())))
    yield found
    dense = found.dense

    def find_ticket(level: int, density: float) -> Found:
        state = replicate.lab.at(dense, steps[density])
        mask = prune(replicate, state, scope, density, settings, **how)
        mask, derived = apply_ticket_structure(replicate, state, mask, settings)
        found = train_after_pruning(replicate, dense, state, mask, settings, level=level, density=density)
        return replace(found, moment=(moments or {}).get(density), structured=derived)

    yield from replicate.find_each(find_ticket, steps)


def train_after_pruning(
    replicate: Replicate,
    dense: Result,
    state: Result,
    mask: str,
    settings: PruningSettings,
    *,
    level: int,
    density: float,
    searched: Result | None = None,
) -> Found:
    """Continue training from a state, with its optimiser, to the end of the schedule under a stored mask.

    `searched` is the training that chose the mask; by default `state`. Give it if the weights of `state` were changed
    after that training.
    """
    step, source = state.segment.last, searched or state
    segment = replicate.ticket_training(
        mask, rewound=state, trained=state, shrunk=settings.parsed_structure.trains_smaller_network
    )
    segment = stretch_to_flops(replicate.lab, segment, [source], settings.equal_cost)
    result = replicate.lab.train(segment, label=f"{settings.describe_target(density)} from step {step}")
    return Found(
        *(level, mask, state, dense, GRADUAL, result),
        searched=(source,),
        behind=step,
        pattern=settings.parsed_structure.pattern,
        aim=settings.budget_cache_key,
    )


AnySettings = TypeVar("AnySettings", bound="PruningSettings")


def ticket_training_steps(retrain: str, step: int, total: int) -> int:
    """Return the number of steps for which a ticket is trained after it was pruned and rewound to `step`."""
    if step == total and retrain in ("continue", "rewind_lr"):
        raise UsageError(
            f"rewound to step {step} of {total} nothing is left to train: choose an earlier step, or rewind end, after"
            " which a ticket is fine-tuned"
        )
    return {"restart": total, "none": 0, "finetune": total - step or total}.get(retrain, total - step)


def compress_to_steps(
    replicate: Replicate,
    settings: AnySettings,
    steps_needed: Callable[[Segment, AnySettings], int],
    points: tuple[str, ...],
) -> tuple[Replicate, AnySettings]:
    """Shorten the schedule until a whole search takes no more steps than one dense training by the full recipe.

    If a dense training has T steps and the search would have N, the new length is T * T / N, rounded down. It is
    shorter still if rounding `points` would make the search longer than T. Replicate and settings stay unchanged unless
    the setting `equal_cost` is ``steps``.

    Args:
        steps_needed: function of (dense training, settings) that returns how many steps the search for the sparsest
            ticket takes in all.
        points: names of the settings that are steps of the schedule, such as ``rewind``; they are scaled with the
            schedule.
    """
    whole = replicate.dense_training
    total, steps = whole.total, steps_needed(whole, settings)  # raises for a rewind step at the end
    if settings.equal_cost != "steps":
        return replicate, settings
    per_epoch = whole.per_epoch
    for length in range(total * total // steps, 0, -1):
        own = replace(replicate, recipe=replicate.recipe.scaled(length, per_epoch=per_epoch))
        steps_of_points = {name: Step.parse(getattr(settings, name)) for name in points}
        shorter: Any = {
            name: str(step.scaled(Fraction(length, total), per_epoch=per_epoch))
            for name, step in steps_of_points.items()
        }
        scaled = replace(settings, **shorter)
        if steps_needed(own.dense_training, scaled) <= total:
            return own, scaled
    raise UsageError(f"with equal_cost steps {total} steps are too few for {steps / total:.3g} trainings of them")


def dense_trained_by_full_recipe(replicate: Replicate, found: Found) -> Found:
    """Return `found`, or, if its schedule was shortened, a dense network trained by the whole recipe instead."""
    if found.result.segment.recipe == replicate.recipe:
        return found
    dense = replicate.lab.train(replicate.dense_training, label="dense")
    return replace(found, dense=dense, result=dense)


def stretch_to_flops(lab: Lab, rest: Segment, before: list[Result], equal_cost: str) -> Segment:
    """Prolong the last training until the ticket's whole search costs the FLOPs of one dense training.

    FLOPs of earlier trainings, and of scores that use examples, count as spent. The whole schedule is stretched by one
    factor, so learning rates continue from the same value and change more slowly. Unless `equal_cost` is ``flops``,
    `rest` is returned unchanged.

    `rest` is the last training, from the last pruning step to the end of the schedule; `before` are all others.
    """
    if equal_cost != "flops":
        return rest
    from ticketry.lab.costs.ledger import training_phases_before_sparse
    from ticketry.lab.costs.step_cost import Costs, step_flops

    assert rest.mask is not None
    dense, _ = step_flops(lab, replace(rest, variants=()))
    _, flops = step_flops(lab, rest)
    spent = Costs(lab).flops(training_phases_before_sparse(before, rest.mask))
    if spent is None or flops <= 0:
        raise UsageError("equal_cost flops: the FLOPs of this network cannot be counted: use equal_cost steps")
    steps = floor((rest.total * dense - spent) / flops + 1e-9)
    if steps < 1:
        raise UsageError(
            f"equal_cost flops: {spent:.3g} FLOPs are spent before the last cut, and a dense training has"
            f" {rest.total * dense:.3g}: let scores see fewer examples, or cut less often"
        )
    factor = Fraction(steps, rest.steps)
    first = floor(rest.first * factor + Fraction(1, 2))
    recipe = rest.recipe.scaled(first + steps, per_epoch=rest.per_epoch)
    return replace(rest, recipe=recipe, first=first, last=first + steps, total=first + steps)
