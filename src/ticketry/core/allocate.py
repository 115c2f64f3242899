"""Scores to a mask at a density: how many weights each layer keeps, and which."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor

from ticketry.choices import describe_name_difference, require_name
from ticketry.core.allocate_blocks import all_within_a_block, allocate_blocks
from ticketry.core.costs.least import check_least, check_within
from ticketry.core.devices.selection import Ranking
from ticketry.core.layout import Layout, best_of_m
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern, check_at_least, check_collapse, check_distribution, kept_elements, share_of
from ticketry.core.scope import covered
from ticketry.errors import LayerCollapseError, MaskError, UsageError
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS, entry_point


@entry_point()
def allocate(
    scores: Mapping[str, Tensor],
    density: float | str | None = None,
    *,
    sparsity: float | str | None = None,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    keep_at_least: int = 0,
    pattern: str | Pattern = "unstructured",
    layouts: Mapping[str, Layout] | None = None,
) -> Mask:
    """The mask that keeps the best-scored weights, with exactly round(density * total) of them.

    Ties break by position (the earlier element, in the order of `scores`, is kept), so the result does not depend on
    luck, device or sort.

    With a `pattern` of blocks, whole blocks are kept or removed, the best by the mean score of their weights, and the
    number of weights comes as near to that as whole blocks permit: within half a block over all layers, and within a
    block in each layer that has a share of its own. With N:M, at most N of every M inputs are candidates, the best. At
    a density of N/M these are what is kept, in every layer (a little more where the inputs are no multiple of M); at a
    lower one the best of them, to the element.

    Args:
        scores: parameter name -> score of each weight, in the parameter's shape; the higher, the more worth keeping.
        density: fraction kept, of all elements of `scores`. With N:M at most N/M, which it is if left out.
        sparsity: share removed, instead of density.
        distribution: how the kept weights are spread over the layers. ``global``: one threshold over all layers;
            ``layerwise``: every layer keeps the same share of what it still has (of `within`); ``uniform``: every
            layer ends at the same density; ``erk``: density of a layer proportional to sum(shape) / prod(shape)
            (Erdos-Renyi-Kernel; Evci et al. 2020, RigL, section 3).
        within: only weights that this mask keeps are candidates (pruning that goes on).
        half_rate: names or patterns of layers or parameters, as `spare` of `scope` takes them, that lose half the share
            that `within` as a whole loses, such as the output layer in Frankle & Carbin (2019, figure 2); the others
            make up for it.
        collapse: what to do where a layer would keep nothing: ``raise``, or ``keep`` its best weight in place of the
            worst kept one of the largest layer.
        keep_at_least: weights that every layer keeps (all that it has, if that is less), the best of it, in place of
            the worst kept ones of whichever layer keeps most. With 1 it is ``collapse="keep"``. Of blocks, as many as
            have so many weights.
        pattern: what is kept or removed together: ``unstructured``, ``4x1``, ``channel``, ``2:4`` …, see `Pattern`.
        layouts: parameter name -> where it has its outputs and inputs, for patterns, see `core.layout`: in dimensions
            0 and 1 if left out. `prune` finds out by itself.

    Raises:
        UsageError: for a density outside (0, 1], or above that of the pattern, an unknown distribution or pattern.
        MaskError: for scores that are not a number, more weights asked for than `within` keeps (by a whole block, where
            blocks are kept), or a `within` that keeps parts of blocks.
        LayerCollapseError: if a layer would be left empty and `collapse` is ``raise``.

    Examples:
        >>> scores = {"weight": torch.tensor([[0.1, 0.9], [0.5, 0.2]])}
        >>> tk.allocate(scores, density=0.5)["weight"]
        tensor([[False,  True],
                [ True, False]])
        >>> two = {"0.weight": torch.tensor([[1.0, 2.0]]), "1.weight": torch.tensor([[3.0, 4.0]])}
        >>> [layer.kept for layer in tk.allocate(two, 0.5, distribution="layerwise").table()]
        [1, 1]
        >>> tk.allocate(two, density=0.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.LayerCollapseError: density 0.5 would leave no weight in 0.weight (layer collapse); the ...
    """
    pattern = Pattern.parse(pattern)
    wanted = pattern.check_density(density, sparsity)
    check_distribution(distribution)
    check_collapse(collapse)
    check_at_least(keep_at_least)
    _check(scores, within, layouts or {})
    half_rate = covered(scores, half_rate, "half_rate")
    least = max(keep_at_least, 1 if collapse == "keep" else 0)
    total = sum(score.numel() for score in scores.values())
    kept = kept_elements(wanted, total)
    if pattern.m:
        within = _of_m(scores, pattern, layouts or {}, within, half_rate)
        if pattern.is_densest(wanted):
            kept = max(kept, within.kept)  # the last inputs keep n too, where they are fewer than m
    if pattern.blocks_of_rows and within is not None and kept > within.kept:
        kept = all_within_a_block(kept, within, pattern, layouts or {})
    check_enough(kept, total, total if within is None else within.kept, wanted)

    def shares(available: Mapping[str, int], amount: int = kept) -> dict[str, int]:
        return layer_shares(scores, available, amount, distribution, half_rate)

    if pattern.blocks_of_rows:
        return allocate_blocks(scores, kept, pattern, layouts or {}, within, targets=shares, least=least)
    ranking = Ranking({name: score.detach().cpu() for name, score in scores.items()}, within)
    return allocate_ranked(ranking, scores, wanted, kept, shares, least)


def allocate_ranked(
    ranking: Ranking,
    tensors: Mapping[str, Tensor],
    density: float,
    kept: int,
    shares: Callable[[Mapping[str, int], int], dict[str, int]],
    least: int,
) -> Mask:
    """The mask of single weights that keeps the `kept` highest of a ranking.

    Args:
        tensors: what is ranked, for its shapes.
        density: what was asked for, for messages.
        shares: how many weights each layer keeps, of those that one ranking does not decide on: see `layer_shares`.
        least: weights that each layer keeps at least; 0 makes an empty one an error.

    Raises:
        LayerCollapseError: if a layer would be left empty.
    """
    available = {name: ranking.available(name) for name in tensors}
    counts = shares(available, kept)
    together = [name for name in tensors if name not in counts]
    lowest = not counts  # shares are rounded, so that a little less may do by luck; one ranking only ever gains
    chosen = _ranked_together(ranking, together, kept - sum(counts.values()))
    counts |= {name: int(each.sum()) for name, each in chosen.items()}
    filled = {name: counts[name] for name, tensor in tensors.items() if tensor.numel()}
    if not least and not all(filled.values()):
        total = sum(tensor.numel() for tensor in tensors.values())
        raise collapsed(filled, density, _enough(ranking, available, filled, kept, total, shares), lowest=lowest)
    for name, count in with_at_least(filled, available, least, density).items():
        if name not in chosen or count != counts[name]:
            chosen[name] = ranking.kept(name, ranking.cut([name], count))[0]
    for name in tensors.keys() - filled.keys():
        chosen[name] = torch.zeros(tensors[name].shape, dtype=torch.bool)
    return Mask({name: chosen[name] for name in tensors}, copy=False)


def _ranked_together(ranking: Ranking, names: list[str], count: int) -> dict[str, Tensor]:
    """name -> what is kept of it, of the `count` highest of all of them."""
    chosen = {}
    cut = ranking.cut(names, count)
    for name in names:
        chosen[name], taken = ranking.kept(name, cut)
        cut = replace(cut, at_threshold=cut.at_threshold - taken)
    return chosen


def allocate_or_keep(scores: Mapping[str, Tensor], density: float, *, collapse: str, **more: Any) -> Mask:
    """`allocate` for what has `collapse` and no `keep_at_least`: errors advise what is there."""
    try:
        return allocate(scores, density, collapse=collapse, **more)
    except LayerCollapseError as error:
        raise error.with_keep_argument("collapse=keep") from None


def _check(scores: Mapping[str, Tensor], within: Mask | None, layouts: Mapping[str, Layout]) -> None:
    """Raises what `allocate` does of arguments that do not belong together."""
    if not scores:
        raise MaskError("there are no scores to allocate by")
    for name in scores:
        require_name(name, "scores", MaskError)
    if unknown := [name for name in layouts if name not in scores]:
        raise UsageError(f"layouts names a tensor without scores: {describe_name_difference(unknown[:1], scores)}")
    check_within({name: tuple(score.shape) for name, score in scores.items()}, within)


def check_enough(kept: int, total: int, left: int, density: float) -> None:
    """Raises `MaskError` where fewer weights are `left` than are to be `kept`."""
    if kept > left:
        raise MaskError(
            f"density {density:g} keeps {kept} of {total} weights, but the mask to go on from has only {left}: ask for"
            f" at most {left / total:.4g}"
        )


def _of_m(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    layouts: Mapping[str, Layout],
    within: Mask | None,
    half_rate: tuple[str, ...],
) -> Mask:
    """What N:M leaves of the candidates."""
    if half_rate:
        raise UsageError(
            f"half_rate has no meaning with pattern {pattern}, by which all layers lose alike: leave it out"
        )
    chosen = {}
    for name, score in scores.items():
        _check_numbers(name, score)
        among = None if within is None else within[name].cpu()
        chosen[name] = best_of_m(score.detach().cpu(), pattern.n, pattern.m, layouts.get(name), among)
    return Mask(chosen, copy=False)


def _check_numbers(name: str, score: Tensor) -> None:
    if score.is_floating_point() and bool(torch.isnan(score.detach()).any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")


def layer_shares(
    scores: Mapping[str, Tensor],
    available: Mapping[str, int],
    kept: int,
    distribution: str,
    half_rate: tuple[str, ...],
) -> dict[str, int]:
    """How many weights each layer keeps, of those that one ranking does not decide on (``global``)."""
    fixed = _half_rate_counts(available, kept, half_rate)
    if distribution == "global":
        return fixed
    rest = {name: count for name, count in available.items() if name not in fixed}
    if distribution == "layerwise":
        weights = {name: Fraction(count) for name, count in rest.items()}
    elif distribution == "uniform":
        weights = {name: Fraction(scores[name].numel()) for name in rest}
    else:
        weights = {name: Fraction(_erk_weight(tuple(scores[name].shape))) for name in rest}
    return fixed | shared_out(kept - sum(fixed.values()), weights, rest)


def _erk_weight(shape: tuple[int, ...]) -> int:
    # The density is proportional to sum / prod, so the number of weights kept is proportional to the sum. A vector
    # (a bias, a norm) has sum = prod: it stays dense as long as the budget allows. So does a single number.
    return max(sum(shape), 1) if prod(shape) else 0


def _half_rate_counts(available: Mapping[str, int], kept: int, half_rate: tuple[str, ...]) -> dict[str, int]:
    total = sum(available.values())
    lost = Fraction(total - kept, total) if total else Fraction(0)
    counts = {name: int(available[name] * (1 - lost / 2) + Fraction(1, 2)) for name in half_rate}
    if sum(counts.values()) > kept:
        raise MaskError(
            f"the layers pruned at half rate ({', '.join(half_rate)}) alone would keep {sum(counts.values())} weights,"
            f" more than the {kept} that the density allows"
        )
    return counts


def global_counts(values: Mapping[str, Tensor], kept: int) -> dict[str, int]:
    """How many of the `kept` largest of all lie in each."""
    if not values:
        return {}
    chosen = largest(torch.cat(list(values.values())), kept)
    parts = torch.split(chosen, [len(part) for part in values.values()])
    return {name: int(part.sum()) for name, part in zip(values, parts, strict=True)}


def shared_out(amount: int, weights: Mapping[str, Fraction], capacity: Mapping[str, int]) -> dict[str, int]:
    """`amount` whole pieces shared out in proportion to `weights`, no more than `capacity` each.

    What one cannot take goes to the others, in proportion; fractions go to the largest remainders (ties by order).
    """
    shares: dict[str, Fraction] = {}
    left, open_names = Fraction(amount), [name for name in weights if weights[name] > 0]
    while open_names:
        weight = sum((weights[name] for name in open_names), Fraction(0))
        full = [name for name in open_names if left * weights[name] >= capacity[name] * weight]
        if not full:
            shares |= {name: left * weights[name] / weight for name in open_names}
            break
        for name in full:
            shares[name] = Fraction(capacity[name])
        left -= sum(capacity[name] for name in full)
        open_names = [name for name in open_names if name not in full]
    counts = {name: int(shares.get(name, Fraction(0))) for name in weights}
    by_remainder = sorted(counts, key=lambda name: counts[name] - shares.get(name, Fraction(0)))
    for name in by_remainder:
        if sum(counts.values()) == amount:
            break
        counts[name] += counts[name] < capacity[name]
    return counts


def collapsed(counts: Mapping[str, int], density: float, enough: float | None, *, lowest: bool) -> LayerCollapseError:
    """The error where layers would keep none of their weights."""
    empty = ", ".join(name for name, count in counts.items() if not count)
    what = "the lowest that leaves some in each is" if lowest else "some are left in each at"
    higher = "choose a higher one" if enough is None else f"{what} {enough:g}: choose it"
    return LayerCollapseError(
        f"density {density:g} would leave no weight in {empty} (layer collapse)",
        f"{higher}, another distribution (layerwise, erk), spare the layer",
        keep="keep a weight in each",
    )


def _enough(
    ranking: Ranking,
    available: Mapping[str, int],
    filled: Iterable[str],
    kept: int,
    total: int,
    shares: Callable[[Mapping[str, int], int], dict[str, int]],
) -> float | None:
    """A density above `kept` of `total`, in four digits, that leaves weights in the layers `filled`.

    The lowest one where it does so because all above do. None if there is none, as where a layer has no candidates.
    """
    if not all(available[name] for name in filled):
        return None
    fixed = shares(available, kept)
    needed = ranking.count_to_reach([name for name in available if name not in fixed])

    def suffices(count: int) -> bool:
        try:
            fixed = shares(available, count)
        except MaskError:  # half rates ask for more
            return False
        return count - sum(fixed.values()) >= needed and all(fixed[name] for name in filled if name in fixed)

    low, high = kept, sum(available.values())
    if not suffices(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    rounded = Context(prec=4, rounding=ROUND_CEILING).divide(Decimal(high), Decimal(total))
    return float(rounded) if suffices(kept_elements(float(rounded), total)) else high / total


def with_at_least(counts: dict[str, int], available: Mapping[str, int], least: int, density: float) -> dict[str, int]:
    """The counts with at least `least` in each layer, taken from the largest, one by one."""
    floor = check_least(counts, available, least, sum(counts.values()), density)
    raised = {name: max(count, floor[name]) for name, count in counts.items()}
    excess = sum(raised.values()) - sum(counts.values())
    # Of the largest the first in order gives; a layer at its floor is never asked, for the others suffice.
    heap = [(-count, index, name) for index, (name, count) in enumerate(raised.items()) if count > floor[name]]
    heapq.heapify(heap)
    for _ in range(excess):
        count, index, name = heapq.heappop(heap)
        raised[name] -= 1
        if raised[name] > floor[name]:
            heapq.heappush(heap, (count + 1, index, name))
    return raised


def largest(values: Tensor, count: int) -> Tensor:
    """Boolean [n]: the `count` largest of `values` [n], ties going to the earlier ones. No full sort."""
    if count >= len(values):
        return torch.ones(len(values), dtype=torch.bool)
    if count == 0:
        return torch.zeros(len(values), dtype=torch.bool)
    threshold = values.kthvalue(len(values) - count + 1).values
    chosen = values > threshold
    tied = (values == threshold).nonzero().flatten()
    chosen[tied[: count - int(chosen.sum())]] = True
    return chosen


def _check_share(value: Any, name: str, model: object) -> object:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    share_of(value, name)
    return value


ARGUMENT_CHECKS.update(dict.fromkeys(("density", "sparsity", "flops"), _check_share))
