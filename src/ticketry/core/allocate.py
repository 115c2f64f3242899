"""Masks from scores at a density: how many weights, or blocks of weights, each layer retains, and which."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor

from ticketry.choices import describe_name_difference
from ticketry.core.devices.selection import Ranking
from ticketry.core.devices.sharding import check_shards
from ticketry.core.layer_minimum import check_least, check_within
from ticketry.core.mask import Mask
from ticketry.core.scope import match_names
from ticketry.core.structure.layout import Blocks, Layout, best_of_m
from ticketry.core.structure.pattern import (
    Pattern,
    check_at_least,
    check_collapse,
    check_distribution,
    kept_elements,
    share_of,
)
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
    """Return the mask that retains the best-scored weights, exactly round(density * total) of them.

    Ties go to the earlier element, in the order of `scores`, so the result does not depend on the device or the sort.

    With a `pattern` of blocks, whole blocks are retained or removed by the mean score of their weights. The number of
    weights is met within half a block over all layers, and within a block in each layer that has its own share. With
    N:M, the best N of every M inputs are candidates. At a density of N/M all of them are retained in every layer (a few
    more if the inputs are no multiple of M); at a lower density the best of them, to the element.

    Args:
        scores: parameter name -> score of each weight, in the parameter's shape; the higher, the more important.
        density: fraction retained of all elements of `scores`. With N:M at most N/M, which is the default.
        sparsity: share removed, instead of density.
        distribution: how the retained weights are distributed over the layers. ``global``: one threshold over all
            layers; ``layerwise``: every layer retains the same share of what it still has (in `within`); ``uniform``:
            every layer ends at the same density; ``erk``: density of a layer proportional to sum(shape) / prod(shape)
            (Erdos-Renyi-Kernel; Evci et al. 2020, RigL, section 3).
        within: only weights that this mask retains are candidates (continued pruning).
        half_rate: names or patterns of layers or parameters, as for `spare` of `scope`, that lose half the share that
            `within` as a whole loses, such as the output layer in Frankle & Carbin (2019, figure 2); the others lose
            more instead.
        collapse: what to do if a layer would be left empty: ``raise``, or ``keep`` its best weight instead of the worst
            retained one of the largest layer.
        keep_at_least: number of weights that every layer retains at least (all it has, if it has fewer), instead of the
            worst retained ones of the layer that retains most. 1 is ``collapse="keep"``. With blocks, rounded up to
            whole blocks.
        pattern: which weights are retained or removed together: ``unstructured``, ``4x1``, ``channel``, ``2:4`` …, see
            `Pattern`.
        layouts: parameter name -> its output and input dimensions, for patterns, see `structure.layouts`; by default 0
            and 1. `prune` finds them from the model.

    Raises:
        UsageError: for a density outside (0, 1] or above that of the pattern, an unknown distribution or pattern, or
            `scores` that are not a mapping of tensors.
        MaskError: for NaN scores, more weights requested than `within` retains (by a whole block, with blocks), or a
            `within` that retains parts of blocks.
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
    _check_arguments(scores, within, layouts or {})
    half_rate = match_names(scores, half_rate, "half_rate")
    least = max(keep_at_least, 1 if collapse == "keep" else 0)
    total = sum(score.numel() for score in scores.values())
    kept = kept_elements(wanted, total)
    if pattern.m:
        within = _n_of_m_candidates(scores, pattern, layouts or {}, within, half_rate)
        if pattern.is_densest(wanted):
            kept = max(kept, within.kept)  # the last group of fewer than m inputs retains n too
    if pattern.blocks_of_rows and within is not None and kept > within.kept:
        kept = _cap_within_a_block(kept, within, pattern, layouts or {})
    _check_enough(kept, total, total if within is None else within.kept, wanted)

    def shares(available: Mapping[str, int], amount: int = kept) -> dict[str, int]:
        return layer_counts(scores, available, amount, distribution, half_rate)

    if pattern.blocks_of_rows:
        return _allocate_blocks(scores, kept, pattern, layouts or {}, within, targets=shares, least=least)
    ranking = Ranking({name: score.detach().cpu() for name, score in scores.items()}, within)
    return _allocate_ranked(ranking, scores, wanted, kept, shares, least)


def allocate_sharded_magnitudes(
    parameters: Mapping[str, Tensor],
    density: float,
    *,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    keep_at_least: int = 0,
) -> Mask:
    """Return the mask that `allocate` returns for the magnitudes of the whole parameters, without gathering them.

    All processes that hold shards of the parameters call it with the same arguments, and get the same mask: whole, on
    the CPU, one byte per weight.

    Raises:
        UsageError, MaskError, LayerCollapseError: as `allocate`, in all processes.
    """
    check_distribution(distribution)
    check_collapse(collapse)
    check_at_least(keep_at_least)
    check_shards(parameters)
    check_within({name: tuple(parameter.shape) for name, parameter in parameters.items()}, within)
    half_rate = match_names(parameters, half_rate, "half_rate")
    total = sum(parameter.numel() for parameter in parameters.values())
    kept = kept_elements(density, total)
    _check_enough(kept, total, total if within is None else within.kept, density)
    return _allocate_ranked(
        Ranking(parameters, within, magnitudes=True),
        parameters,
        density,
        kept,
        lambda available, amount: layer_counts(parameters, available, amount, distribution, half_rate),
        max(keep_at_least, 1 if collapse == "keep" else 0),
    )


def _allocate_ranked(
    ranking: Ranking,
    tensors: Mapping[str, Tensor],
    density: float,
    kept: int,
    shares: Callable[[Mapping[str, int], int], dict[str, int]],
    least: int,
) -> Mask:
    """Return the mask of single weights that retains the `kept` highest of a ranking.

    Args:
        ranking: of the tensors.
        tensors: the ranked tensors, for their shapes.
        density: the requested density, for messages.
        kept: number of weights to retain.
        shares: number of weights of each layer that has its own share, see `layer_counts`.
        least: number of weights that each layer retains at least; 0 makes an empty layer an error.

    Raises:
        LayerCollapseError: if a layer would be left empty.
    """
    available = {name: ranking.available(name) for name in tensors}
    counts = shares(available, kept)
    together = [name for name in tensors if name not in counts]
    lowest = not counts  # shares are rounded, so a slightly lower density may suffice by chance
    chosen = _select_jointly(ranking, together, kept - sum(counts.values()))
    counts |= {name: int(each.sum()) for name, each in chosen.items()}
    filled = {name: counts[name] for name, tensor in tensors.items() if tensor.numel()}
    if not least and not all(filled.values()):
        total = sum(tensor.numel() for tensor in tensors.values())
        enough = _lowest_sufficient_density(ranking, available, filled, kept, total, shares)
        raise _layer_collapse(filled, density, enough, lowest=lowest)
    for name, count in _raise_to_floor(filled, available, least, density).items():
        if name not in chosen or count != counts[name]:
            chosen[name] = ranking.select(name, ranking.threshold([name], count))[0]
    for name in tensors.keys() - filled.keys():
        chosen[name] = torch.zeros(tensors[name].shape, dtype=torch.bool)
    return Mask({name: chosen[name] for name in tensors}, copy=False)


def _select_jointly(ranking: Ranking, names: list[str], count: int) -> dict[str, Tensor]:
    """Return name -> bool tensor: the `count` highest elements of all these tensors together."""
    chosen = {}
    threshold = ranking.threshold(names, count)
    for name in names:
        chosen[name], taken = ranking.select(name, threshold)
        threshold = replace(threshold, at_key=threshold.at_key - taken)
    return chosen


def allocate_or_keep(scores: Mapping[str, Tensor], density: float, *, collapse: str, **more: Any) -> Mask:
    """Call `allocate` for a caller without the option `keep_at_least`, so that errors advise ``collapse=keep``."""
    try:
        return allocate(scores, density, collapse=collapse, **more)
    except LayerCollapseError as error:
        raise error.with_keep_argument("collapse=keep") from None


def _check_arguments(scores: Mapping[str, Tensor], within: Mask | None, layouts: Mapping[str, Layout]) -> None:
    """Raise an error if arguments of `allocate` are of different tensors."""
    if not scores:
        raise MaskError("there are no scores to allocate by")
    if unknown := [name for name in layouts if name not in scores]:
        raise UsageError(f"layouts names a tensor without scores: {describe_name_difference(unknown[:1], scores)}")
    check_within({name: tuple(score.shape) for name, score in scores.items()}, within)


def _check_enough(kept: int, total: int, left: int, density: float) -> None:
    """Raise `MaskError` if fewer weights are `left` than are to be `kept`."""
    if kept > left:
        raise MaskError(
            f"density {density:g} keeps {kept} of {total} weights, but the mask to go on from has only {left}: ask for"
            f" at most {left / total:.4g}"
        )


def _n_of_m_candidates(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    layouts: Mapping[str, Layout],
    within: Mask | None,
    half_rate: tuple[str, ...],
) -> Mask:
    """Return the mask of the best N of every M inputs among the candidates."""
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


def layer_counts(
    scores: Mapping[str, Tensor],
    available: Mapping[str, int],
    kept: int,
    distribution: str,
    half_rate: tuple[str, ...],
) -> dict[str, int]:
    """Return the number of weights of each layer that has its own share; others are ranked together (``global``)."""
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
    return fixed | apportion(kept - sum(fixed.values()), weights, rest)


def _erk_weight(shape: tuple[int, ...]) -> int:
    # Density is proportional to sum / prod, so the number of weights is proportional to the sum. Vectors (biases,
    # norms) and scalars have sum = prod: they stay dense as long as the total allows.
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
    """Return how many of the `kept` largest of all values each tensor has."""
    if not values:
        return {}
    chosen = largest(torch.cat(list(values.values())), kept)
    parts = torch.split(chosen, [len(part) for part in values.values()])
    return {name: int(part.sum()) for name, part in zip(values, parts, strict=True)}


def apportion(amount: int, weights: Mapping[str, Fraction], capacity: Mapping[str, int]) -> dict[str, int]:
    """Divide a whole `amount` in proportion to `weights`, at most `capacity` each, by the largest-remainder method.

    The excess over a capacity goes to the others, in proportion. Ties go to the earlier name.
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


def _layer_collapse(
    counts: Mapping[str, int], density: float, enough: float | None, *, lowest: bool
) -> LayerCollapseError:
    """Build the error for layers that would be left empty."""
    empty = ", ".join(name for name, count in counts.items() if not count)
    what = "the lowest that leaves some in each is" if lowest else "some are left in each at"
    higher = "choose a higher one" if enough is None else f"{what} {enough:g}: choose it"
    return LayerCollapseError(
        f"density {density:g} would leave no weight in {empty} (layer collapse)",
        f"{higher}, another distribution (layerwise, erk), spare the layer",
        keep="keep a weight in each",
    )


def _lowest_sufficient_density(
    ranking: Ranking,
    available: Mapping[str, int],
    filled: Iterable[str],
    kept: int,
    total: int,
    shares: Callable[[Mapping[str, int], int], dict[str, int]],
) -> float | None:
    """Return the lowest density above `kept / total`, rounded up to four digits, that leaves no `filled` layer empty.

    None if no density does, because a layer has no candidates.
    """
    if not all(available[name] for name in filled):
        return None
    fixed = shares(available, kept)
    needed = ranking.count_to_reach([name for name in available if name not in fixed])

    def suffices(count: int) -> bool:
        try:
            fixed = shares(available, count)
        except MaskError:  # layers at half rate need more
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


def _raise_to_floor(counts: dict[str, int], available: Mapping[str, int], least: int, density: float) -> dict[str, int]:
    """Raise counts to at least `least` in each layer, and take the excess from the largest layers, one by one."""
    floor = check_least(counts, available, least, sum(counts.values()), density)
    raised = {name: max(count, floor[name]) for name, count in counts.items()}
    excess = sum(raised.values()) - sum(counts.values())
    # Ties go to the first layer in order. Layers at their floor are left out: the others suffice.
    heap = [(-count, index, name) for index, (name, count) in enumerate(raised.items()) if count > floor[name]]
    heapq.heapify(heap)
    for _ in range(excess):
        count, index, name = heapq.heappop(heap)
        raised[name] -= 1
        if raised[name] > floor[name]:
            heapq.heappush(heap, (count + 1, index, name))
    return raised


def largest(values: Tensor, count: int) -> Tensor:
    """Return a bool tensor [n]: the `count` largest of `values` [n], ties going to the earlier. Needs no full sort."""
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


# -- blocks ------------------------------------------------------------------------------------------------------------

Targets = Callable[[Mapping[str, int]], dict[str, int]]
"""Weights available in each layer -> weights to retain, for layers that have their own share."""


@dataclass(frozen=True)
class _LayerBlocks:
    """The candidate blocks of one weight, the best first."""

    blocks: Blocks
    means: Tensor
    """float64 [candidates]: mean score of each block's weights, descending; ties by position."""
    positions: Tensor
    """int64 [candidates]: index of each block among all blocks."""
    weights: Tensor
    """int64 [candidates + 1]: number of weights in the first 0, 1, … blocks."""

    @property
    def available(self) -> int:
        return int(self.weights[-1])

    def mask(self, count: int) -> Tensor:
        """Return the mask of the best `count` blocks."""
        kept = torch.zeros(self.blocks.count, dtype=torch.bool)
        kept[self.positions[:count]] = True
        return self.blocks.spread(kept.view(self.blocks.shape))


def _allocate_blocks(
    scores: Mapping[str, Tensor],
    wanted: int,
    pattern: Pattern,
    layouts: Mapping[str, Layout],
    within: Mask | None,
    *,
    targets: Targets,
    least: int,
) -> Mask:
    """Return the mask of the best blocks by mean score whose number of weights is nearest to `wanted`.

    With one joint ranking, blocks are taken from the top as long as that brings the number of weights nearer. Layers
    with targets take as many of their best blocks as fit; then each may take one more, in the order of how much of it
    would fit, as long as that brings the sum over layers nearer.

    Args:
        targets: the weights of each layer under the distribution.
        least: number of weights that each layer retains at least, rounded up to whole blocks; 0 makes an empty layer an
            error.

    Raises:
        MaskError: if `within` retains parts of blocks, or fewer weights than wanted.
        LayerCollapseError: if a layer would be left empty, or the floors of all layers exceed `wanted`.
    """
    layers = {name: _rank_blocks(name, score, pattern, layouts.get(name), within) for name, score in scores.items()}
    aims = targets({name: layer.available for name, layer in layers.items()})
    counts = _blocks_for_targets({name: layers[name] for name in aims}, aims)
    ranked = {name: layer for name, layer in layers.items() if name not in aims}
    counts |= _blocks_by_rank(ranked, wanted - _weights(layers, counts))
    with_weights = {name: layers[name] for name, score in scores.items() if score.numel()}
    counts |= _raise_blocks_to_floor(with_weights, counts, wanted, least)
    return Mask({name: layer.mask(counts[name]) for name, layer in layers.items()}, copy=False)


def _cap_within_a_block(wanted: int, within: Mask, pattern: Pattern, layouts: Mapping[str, Layout]) -> int:
    """Return all weights of `within` if it lacks less than a block of those `wanted`, else `wanted`.

    A mask of whole blocks can have fewer weights than its density requested. If the densities of a schedule hardly
    fall, the next one may request more than the mask has; then the nearest mask is the mask itself.
    """
    largest = max(
        (
            int(pattern.blocks(shape, layouts.get(name)).sizes.max())
            for name, shape in within.shapes.items()
            if within[name].numel()
        ),
        default=0,
    )
    return within.kept if wanted < within.kept + largest else wanted


def _rank_blocks(
    name: str, score: Tensor, pattern: Pattern, layout: Layout | None, within: Mask | None
) -> _LayerBlocks:
    blocks = pattern.blocks(tuple(score.shape), layout)
    means = blocks.mean(score.detach().cpu()).flatten()
    candidates = torch.ones_like(means) if within is None else blocks.whole(within[name], name).flatten()
    positions = candidates.nonzero()[:, 0]
    means = means[positions]
    if bool(torch.isnan(means).any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN), or infinite of both signs in one block")
    means, order = means.sort(descending=True, stable=True)
    positions = positions[order]
    weights = torch.cat([torch.zeros(1, dtype=torch.int64), blocks.sizes.flatten()[positions].cumsum(0)])
    return _LayerBlocks(blocks, means, positions, weights)


def _weights(layers: Mapping[str, _LayerBlocks], counts: Mapping[str, int]) -> int:
    """Return the number of weights in the best so many blocks of each layer."""
    return sum(int(layers[name].weights[count]) for name, count in counts.items())


def _blocks_by_rank(layers: Mapping[str, _LayerBlocks], wanted: int) -> dict[str, int]:
    """Return the blocks of each layer in a joint ranking; the fewest whose weights come nearest to `wanted`."""
    if not layers:
        return {}
    means = torch.cat([layer.means for layer in layers.values()])
    sizes = torch.cat([layer.weights.diff() for layer in layers.values()])
    owners = torch.arange(len(layers)).repeat_interleave(torch.tensor([len(layer.means) for layer in layers.values()]))
    order = means.argsort(descending=True, stable=True)
    weights = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[order].cumsum(0)])
    best = int((weights - wanted).abs().argmin())  # the first of equals
    counts = owners[order[:best]].bincount(minlength=len(layers)).tolist()
    return dict(zip(layers, counts, strict=True))


def _blocks_for_targets(layers: Mapping[str, _LayerBlocks], aims: Mapping[str, int]) -> dict[str, int]:
    """Return the number of blocks of each layer that has its own target."""
    counts = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(aims[name]), right=True)) - 1
        for name, layer in layers.items()
    }
    missing = {name: aims[name] - int(layers[name].weights[count]) for name, count in counts.items()}
    next_ones = {
        name: int(layers[name].weights[counts[name] + 1]) - int(layers[name].weights[counts[name]])
        for name in counts
        if missing[name]
    }
    left = sum(missing.values())
    for name in sorted(next_ones, key=lambda name: -missing[name] / next_ones[name]):
        if 2 * left > next_ones[name]:
            counts[name] += 1
            left -= next_ones[name]
    return counts


def _raise_blocks_to_floor(
    layers: Mapping[str, _LayerBlocks], counts: Mapping[str, int], wanted: int, least: int
) -> dict[str, int]:
    """Raise counts to at least `least` weights in each layer, and take the excess from the largest layers."""
    empty = [name for name in layers if counts[name] == 0]
    if empty and not least:
        raise LayerCollapseError(
            f"{wanted} weights in whole blocks of pattern {next(iter(layers.values())).blocks.pattern} would leave none"
            f" in {', '.join(empty)} (layer collapse)",
            "choose a higher density, another distribution (layerwise, erk), smaller blocks, spare the layer",
            keep="keep a block in each",
        )
    floors = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(min(least, layer.available))))
        for name, layer in layers.items()
    }
    had = _weights(layers, {name: counts[name] for name in layers})
    if any(not layers[name].available for name in empty) or _weights(layers, floors) > max(had, wanted):
        largest = max(floors, key=lambda name: int(layers[name].weights[floors[name]]))
        raise LayerCollapseError(
            f"{wanted} weights are too few to keep at least {max(least, 1)} in each of {len(layers)} layers, in whole"
            f" blocks of pattern {next(iter(layers.values())).blocks.pattern}: those would be"
            f" {_weights(layers, floors):,}, {int(layers[largest].weights[floors[largest]]):,} of them in {largest}",
            "choose a higher density, keep fewer in each (keep_at_least), smaller blocks, or spare layers",
        )
    raised = {name: max(counts[name], floors[name]) for name in layers}
    if any(raised[name] > counts[name] for name in layers):
        _remove_worst_blocks(layers, raised, floors, _weights(layers, raised) - max(had, wanted))
    return raised


def _remove_worst_blocks(
    layers: Mapping[str, _LayerBlocks], counts: dict[str, int], floors: Mapping[str, int], excess: int
) -> None:
    """Lower the counts by about `excess` weights: repeatedly by the worst block of the layer that retains most."""
    # Ties go to the first layer in order. A layer whose worst block exceeds the rest of the excess is skipped.
    heap = [(-int(layer.weights[counts[name]]), index, name) for index, (name, layer) in enumerate(layers.items())]
    heapq.heapify(heap)
    while heap and excess > 0:
        _, index, name = heapq.heappop(heap)
        weights, count = layers[name].weights, counts[name]
        size = int(weights[count] - weights[count - 1])
        if count > floors[name] and size < 2 * excess:
            counts[name], excess = count - 1, excess - size
            heapq.heappush(heap, (-int(weights[count - 1]), index, name))
