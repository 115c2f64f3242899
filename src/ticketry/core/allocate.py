"""Compute masks from scores: how many weights, or blocks of weights, each layer retains, and which of them."""

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
from ticketry.core.mask import Mask
from ticketry.core.scope import match_half_rate_names
from ticketry.core.sharding import Ranking, check_shards
from ticketry.core.structure.layout import Blocks, Layout, mark_best_n_of_m
from ticketry.core.structure.pattern import (
    Pattern,
    check_distribution,
    count_retained,
    parse_layer_minimum,
    parse_share,
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
    """Return the mask that retains the weights with the highest scores, exactly round(density * total) of them.

    Of equal scores, the earlier weight is retained, in the order of `scores`. So the mask does not depend on the
    device.

    With a `pattern` of blocks, whole blocks are retained or removed, by the mean score of their weights. The number of
    retained weights is then off by at most half a block in total; in a layer whose number is fixed by `distribution` or
    `half_rate`, by at most one block. With an N:M pattern, only the best N of every M inputs can be retained. At a
    density of N/M, all these weights are retained (slightly more than N/M if the number of inputs is no multiple of M);
    at a lower density, the best of them.

    Args:
        scores: parameter name -> score of each weight, in the parameter's shape; the higher, the more important.
        density: fraction retained of all elements of `scores`. With N:M at most N/M, which is the default.
        sparsity: fraction removed, instead of density.
        distribution: how the retained weights are distributed over the layers. ``global``: one threshold over all
            layers; ``layerwise``: every layer retains the same share of its candidates (see `within`); ``uniform``:
            every layer ends at the same density; ``erk``: the density of a layer is proportional to sum(shape) /
            prod(shape) (Erdos-Renyi-Kernel; Evci et al. 2020, RigL, section 3).
        within: mask of the candidates: weights that this mask removes stay removed (continued pruning).
        half_rate: names or patterns of layers or parameters that are pruned at half the rate. They lose half the share
            of weights that all layers together lose; the other layers lose more. For patterns, see `spare` of `scope`.
            Frankle & Carbin (2019, figure 2) prune the output layer so.
        collapse: what to do if a layer would be left empty: ``raise`` an error, or ``keep`` the layer's best weight and
            remove the worst retained weight of the layer that retains most.
        keep_at_least: smallest number of weights that every layer retains; a layer with fewer candidates retains all.
            In exchange, the layer that retains most loses its worst weights. 1 is ``collapse="keep"``. With blocks, the
            number is rounded up to whole blocks.
        pattern: which weights are retained or removed together: ``unstructured``, ``4x1``, ``channel``, ``2:4`` …, see
            `Pattern`.
        layouts: for patterns: parameter name -> output and input dimensions of the parameter, from `structure.layouts`;
            by default 0 and 1. The function `prune` finds them from the model.

    Raises:
        UsageError: for a density outside (0, 1] or above the largest of the pattern, an unknown distribution or
            pattern, or `scores` that are not a mapping of tensors.
        MaskError: if scores are NaN, if more weights are requested than `within` retains (with blocks: by a block or
            more), or if `within` retains parts of blocks.
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
    least = parse_layer_minimum(collapse, keep_at_least)
    layouts = layouts or {}
    if not scores:
        raise MaskError("there are no scores to allocate by")
    if unknown := [name for name in layouts if name not in scores]:
        raise UsageError(f"layouts names a tensor without scores: {describe_name_difference(unknown[:1], scores)}")
    check_mask_covers_tensors({name: tuple(score.shape) for name, score in scores.items()}, within)
    half_rate = match_half_rate_names(scores, half_rate)
    total = sum(score.numel() for score in scores.values())
    kept = count_retained(wanted, total)
    if pattern.m:
        if half_rate:
            raise UsageError(
                f"half_rate has no meaning with pattern {pattern}, by which all layers lose alike: leave it out"
            )
        within = _select_n_of_m_candidates(scores, pattern, layouts, within)
        if pattern.is_densest(wanted):
            kept = max(kept, within.kept)  # the last group of fewer than m inputs retains n too
    if pattern.blocks_of_rows and within is not None and kept > within.kept:
        # A mask of whole blocks may retain slightly fewer weights than were requested. The next density of a slowly
        # falling schedule may then request more weights than this mask retains; all of them are then retained.
        blocks = [pattern.blocks(shape, layouts.get(name)) for name, shape in within.shapes.items() if prod(shape)]
        if kept < within.kept + max(int(each.sizes.max()) for each in blocks):
            kept = within.kept
    _check_enough_candidates(kept, total, total if within is None else within.kept, wanted)

    def count_per_layer(available: Mapping[str, int], amount: int = kept) -> dict[str, int]:
        return count_weights_per_layer(scores, available, amount, distribution, half_rate)

    if pattern.blocks_of_rows:
        layers = {name: _rank_blocks(name, one, pattern, layouts.get(name), within) for name, one in scores.items()}
        targets = count_per_layer({name: layer.available_weights for name, layer in layers.items()})
        return _allocate_blocks(layers, targets, kept, least)
    ranking = Ranking({name: score.detach().cpu() for name, score in scores.items()}, within)
    return _allocate_by_ranking(ranking, scores, wanted, kept, count_per_layer, least)


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
    """Return the mask that `allocate` computes from weight magnitudes, for parameters sharded over several devices.

    The parameters are not gathered. All processes that hold shards must call this function with the same arguments.
    Each process gets the same mask of the whole parameters, on the CPU (one byte per weight).
    """
    check_distribution(distribution)
    least = parse_layer_minimum(collapse, keep_at_least)
    check_shards(parameters)
    check_mask_covers_tensors({name: tuple(parameter.shape) for name, parameter in parameters.items()}, within)
    half_rate = match_half_rate_names(parameters, half_rate)
    total = sum(parameter.numel() for parameter in parameters.values())
    kept = count_retained(density, total)
    _check_enough_candidates(kept, total, total if within is None else within.kept, density)
    return _allocate_by_ranking(
        Ranking(parameters, within, magnitudes=True),
        parameters,
        density,
        kept,
        lambda available, amount: count_weights_per_layer(parameters, available, amount, distribution, half_rate),
        least,
    )


def _allocate_by_ranking(
    ranking: Ranking,
    tensors: Mapping[str, Tensor],
    density: float,
    kept: int,
    count_per_layer: Callable[[Mapping[str, int], int], dict[str, int]],
    least: int,
) -> Mask:
    """Return the unstructured mask that retains the `kept` highest weights of a ranking.

    Args:
        count_per_layer: function (candidates of each layer, number of weights in total) -> numbers of weights, for
            the layers whose number is fixed; see `count_weights_per_layer`.
        least: smallest number of weights that each layer retains; with 0, an empty layer is an error.
    """
    available = {name: ranking.count_candidates(name) for name in tensors}
    counts = count_per_layer(available, kept)
    together = [name for name in tensors if name not in counts]
    lowest = not counts  # shares are rounded, so a slightly lower density may suffice by chance
    chosen = {}
    threshold = ranking.find_threshold(together, kept - sum(counts.values()))
    for name in together:
        chosen[name], taken = ranking.select_above(name, threshold)
        threshold = replace(threshold, at_key=threshold.at_key - taken)
    counts |= {name: int(each.sum()) for name, each in chosen.items()}
    filled = {name: counts[name] for name, tensor in tensors.items() if tensor.numel()}
    if not least and not all(filled.values()):
        total = sum(tensor.numel() for tensor in tensors.values())
        enough = _lowest_sufficient_density(ranking, available, filled, kept, total, count_per_layer)
        empty = ", ".join(name for name, count in filled.items() if not count)
        what = "the lowest that leaves some in each is" if lowest else "some are left in each at"
        higher = "choose a higher one" if enough is None else f"{what} {enough:g}: choose it"
        raise LayerCollapseError(
            f"density {density:g} would leave no weight in {empty} (layer collapse)",
            f"{higher}, another distribution (layerwise, erk), spare the layer",
            keep="keep a weight in each",
        )
    for name, count in _enforce_layer_minimum(filled, available, least, density).items():
        if name not in chosen or count != counts[name]:
            chosen[name] = ranking.select_above(name, ranking.find_threshold([name], count))[0]
    for name in tensors.keys() - filled.keys():
        chosen[name] = torch.zeros(tensors[name].shape, dtype=torch.bool)
    return Mask({name: chosen[name] for name in tensors}, copy=False)


def allocate_for_gates(scores: Mapping[str, Tensor], density: float, *, collapse: str, **more: Any) -> Mask:
    """Return the mask of `allocate`; its error for an empty layer advises ``collapse=keep``, not `keep_at_least`.

    Gates have no argument `keep_at_least`.
    """
    try:
        return allocate(scores, density, collapse=collapse, **more)
    except LayerCollapseError as error:
        raise error.with_keep_argument("collapse=keep") from None


def _check_enough_candidates(kept: int, total: int, left: int, density: float) -> None:
    """Raise `MaskError` if `kept` weights are to be retained, but only `left` weights are candidates."""
    if kept > left:
        raise MaskError(
            f"density {density:g} keeps {kept} of {total} weights, but the mask to go on from has only {left}: ask for"
            f" at most {left / total:.4g}"
        )


def _select_n_of_m_candidates(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    layouts: Mapping[str, Layout],
    within: Mask | None,
) -> Mask:
    """Return the mask that retains, among the candidates in `within`, the N highest scores of every M inputs."""
    chosen = {}
    for name, score in scores.items():
        if score.is_floating_point() and bool(torch.isnan(score.detach()).any()):
            raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
        among = None if within is None else within[name].cpu()
        chosen[name] = mark_best_n_of_m(score.detach().cpu(), pattern.n, pattern.m, layouts.get(name), among)
    return Mask(chosen, copy=False)


def count_weights_per_layer(
    scores: Mapping[str, Tensor], available: Mapping[str, int], kept: int, distribution: str, half_rate: tuple[str, ...]
) -> dict[str, int]:
    """Return the number of weights to retain, for each layer whose number is fixed by `distribution` or `half_rate`.

    With the distribution ``global`` these are only the layers in `half_rate`; the caller ranks all other layers
    together. `available` contains each layer's number of candidates; `kept` is the number of weights to retain in
    total.
    """
    total = sum(available.values())
    lost = Fraction(total - kept, total) if total else Fraction(0)
    fixed = {name: int(available[name] * (1 - lost / 2) + Fraction(1, 2)) for name in half_rate}
    if sum(fixed.values()) > kept:
        raise MaskError(
            f"the layers pruned at half rate ({', '.join(half_rate)}) alone would keep {sum(fixed.values())} weights,"
            f" more than the {kept} that the density allows"
        )
    if distribution == "global":
        return fixed
    rest = {name: count for name, count in available.items() if name not in fixed}
    if distribution == "layerwise":
        weights = {name: Fraction(count) for name, count in rest.items()}
    elif distribution == "uniform":
        weights = {name: Fraction(scores[name].numel()) for name in rest}
    else:
        # Density is proportional to sum / prod, so the number of weights is proportional to the sum. Vectors (biases,
        # norms) and scalars have sum = prod: they stay dense as long as the total allows.
        weights = {name: Fraction(max(sum(scores[name].shape), 1) if scores[name].numel() else 0) for name in rest}
    return fixed | apportion(kept - sum(fixed.values()), weights, rest)


def count_largest_per_tensor(values: Mapping[str, Tensor], kept: int) -> dict[str, int]:
    """Return how many of the `kept` largest values of all tensors together are in each tensor."""
    if not values:
        return {}
    chosen = mask_of_largest(torch.cat(list(values.values())), kept)
    parts = torch.split(chosen, [len(part) for part in values.values()])
    return {name: int(part.sum()) for name, part in zip(values, parts, strict=True)}


def apportion(amount: int, weights: Mapping[str, Fraction], capacity: Mapping[str, int]) -> dict[str, int]:
    """Divide the integer `amount` among the names in proportion to `weights`; no name gets more than its `capacity`.

    What exceeds a name's capacity is divided among the other names. Fractions are rounded by the largest-remainder
    method; of equal remainders, the earlier name gets the unit.
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


def _lowest_sufficient_density(
    ranking: Ranking,
    available: Mapping[str, int],
    filled: Iterable[str],
    kept: int,
    total: int,
    count_per_layer: Callable[[Mapping[str, int], int], dict[str, int]],
) -> float | None:
    """Return the lowest density, rounded up to four digits, that leaves no layer in `filled` empty.

    The result is above `kept / total`. It is None if no density suffices, because a layer has no candidates.
    """
    if not all(available[name] for name in filled):
        return None
    fixed = count_per_layer(available, kept)
    needed = ranking.count_to_include_all([name for name in available if name not in fixed])

    def leaves_no_layer_empty(count: int) -> bool:
        try:
            fixed = count_per_layer(available, count)
        except MaskError:  # layers at half rate need more
            return False
        return count - sum(fixed.values()) >= needed and all(fixed[name] for name in filled if name in fixed)

    low, high = kept, sum(available.values())
    if not leaves_no_layer_empty(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if leaves_no_layer_empty(middle) else (middle, high)
    rounded = Context(prec=4, rounding=ROUND_CEILING).divide(Decimal(high), Decimal(total))
    return float(rounded) if leaves_no_layer_empty(count_retained(float(rounded), total)) else high / total


def _enforce_layer_minimum(
    counts: dict[str, int], available: Mapping[str, int], least: int, density: float
) -> dict[str, int]:
    """Return `counts` with each layer's number of weights raised to at least `least`.

    The largest numbers are lowered, so that the total stays the same.
    """
    floor = compute_layer_minimums(counts, available, least, sum(counts.values()), density)
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


def mask_of_largest(values: Tensor, count: int) -> Tensor:
    """Return a bool tensor [n] that marks the `count` largest of `values` [n]; of equal values, the earlier one."""
    if count >= len(values):
        return torch.ones(len(values), dtype=torch.bool)
    if count == 0:
        return torch.zeros(len(values), dtype=torch.bool)
    threshold = values.max() if count == 1 else values.kthvalue(len(values) - count + 1).values
    chosen = values > threshold
    tied = (values == threshold).nonzero().flatten()
    chosen[tied[: count - int(chosen.sum())]] = True
    return chosen


def _check_fraction(value: Any, name: str, model: object) -> object:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    parse_share(value, name)
    return value


ARGUMENT_CHECKS.update(dict.fromkeys(("density", "sparsity", "flops"), _check_fraction))


# -- blocks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerBlocks:
    """Contains the candidate blocks of a weight tensor, sorted by score."""

    blocks: Blocks
    means: Tensor
    """float64 [candidates]: mean score of each block's weights, descending; equal blocks are in order of position."""
    positions: Tensor
    """int64 [candidates]: index of each candidate among all blocks of the tensor."""
    weights: Tensor
    """int64 [candidates + 1]: entry i is the number of weights in the best i blocks."""

    @property
    def available_weights(self) -> int:
        return int(self.weights[-1])

    def best_blocks_mask(self, count: int) -> Tensor:
        """Return the mask that retains the `count` best blocks of the weight tensor."""
        kept = torch.zeros(self.blocks.count, dtype=torch.bool)
        kept[self.positions[:count]] = True
        return self.blocks.expand_to_weights(kept.view(self.blocks.shape))


def _allocate_blocks(layers: Mapping[str, _LayerBlocks], targets: Mapping[str, int], wanted: int, least: int) -> Mask:
    """Return the mask that retains the blocks with the highest mean scores, with about `wanted` weights.

    Layers without a target number of weights are ranked jointly: the best blocks are retained as long as each brings
    the number of weights nearer to `wanted`. Layers with a target first retain as many of their best blocks as fit.
    Then layers may retain one more block each, as long as this brings the total nearer to the sum of the targets.
    Layers in which most of this block would fit come first.

    `least` is the smallest number of weights that each layer retains, rounded up to whole blocks; with 0, an empty
    layer is an error.
    """
    counts = _count_blocks_for_targets({name: layers[name] for name in targets}, targets)
    ranked = {name: layer for name, layer in layers.items() if name not in targets}
    counts |= _count_blocks_by_joint_ranking(ranked, wanted - _count_weights_in_best_blocks(layers, counts))
    with_weights = {name: layer for name, layer in layers.items() if prod(layer.blocks.weight_shape)}
    counts |= _enforce_layer_minimum_in_blocks(with_weights, counts, wanted, least)
    return Mask({name: layer.best_blocks_mask(counts[name]) for name, layer in layers.items()}, copy=False)


def _rank_blocks(
    name: str, score: Tensor, pattern: Pattern, layout: Layout | None, within: Mask | None
) -> _LayerBlocks:
    blocks = pattern.blocks(tuple(score.shape), layout)
    means = blocks.mean_by_block(score.detach().cpu()).flatten()
    candidates = torch.ones_like(means) if within is None else blocks.retained_blocks(within[name], name).flatten()
    positions = candidates.nonzero()[:, 0]
    means = means[positions]
    if bool(torch.isnan(means).any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN), or infinite of both signs in one block")
    means, order = means.sort(descending=True, stable=True)
    positions = positions[order]
    weights = torch.cat([torch.zeros(1, dtype=torch.int64), blocks.sizes.flatten()[positions].cumsum(0)])
    return _LayerBlocks(blocks, means, positions, weights)


def _count_weights_in_best_blocks(layers: Mapping[str, _LayerBlocks], counts: Mapping[str, int]) -> int:
    """Return the total number of weights if each layer `name` retains its `counts[name]` best blocks."""
    return sum(int(layers[name].weights[count]) for name, count in counts.items())


def _count_blocks_by_joint_ranking(layers: Mapping[str, _LayerBlocks], wanted: int) -> dict[str, int]:
    """Return how many blocks each layer retains if the blocks of all layers are ranked together.

    The number of retained weights is as near to `wanted` as whole blocks permit.
    """
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


def _count_blocks_for_targets(layers: Mapping[str, _LayerBlocks], targets: Mapping[str, int]) -> dict[str, int]:
    """Return how many blocks each layer retains so that its number of weights is near its target."""
    counts = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(targets[name]), right=True)) - 1
        for name, layer in layers.items()
    }
    missing = {name: targets[name] - int(layers[name].weights[count]) for name, count in counts.items()}
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


def _enforce_layer_minimum_in_blocks(
    layers: Mapping[str, _LayerBlocks], counts: Mapping[str, int], wanted: int, least: int
) -> dict[str, int]:
    """Return `counts` with more blocks in each layer that would retain less than `least` weights.

    About as many weights are removed from the largest layers.
    """
    empty = [name for name in layers if counts[name] == 0]
    if empty and not least:
        raise LayerCollapseError(
            f"{wanted} weights in whole blocks of pattern {next(iter(layers.values())).blocks.pattern} would leave none"
            f" in {', '.join(empty)} (layer collapse)",
            "choose a higher density, another distribution (layerwise, erk), smaller blocks, spare the layer",
            keep="keep a block in each",
        )
    floors = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(min(least, layer.available_weights))))
        for name, layer in layers.items()
    }
    had = _count_weights_in_best_blocks(layers, {name: counts[name] for name in layers})
    if any(not layers[name].available_weights for name in empty) or _count_weights_in_best_blocks(layers, floors) > max(
        had, wanted
    ):
        largest = max(floors, key=lambda name: int(layers[name].weights[floors[name]]))
        raise LayerCollapseError(
            f"{wanted} weights are too few to keep at least {max(least, 1)} in each of {len(layers)} layers, in whole"
            f" blocks of pattern {next(iter(layers.values())).blocks.pattern}: those would be"
            f" {_count_weights_in_best_blocks(layers, floors):,},"
            f" {int(layers[largest].weights[floors[largest]]):,} of them in {largest}",
            "choose a higher density, keep fewer in each (keep_at_least), smaller blocks, or spare layers",
        )
    raised = {name: max(counts[name], floors[name]) for name in layers}
    if any(raised[name] > counts[name] for name in layers):
        _remove_worst_blocks(layers, raised, floors, _count_weights_in_best_blocks(layers, raised) - max(had, wanted))
    return raised


def _remove_worst_blocks(
    layers: Mapping[str, _LayerBlocks], counts: dict[str, int], floors: Mapping[str, int], excess: int
) -> None:
    """Remove about `excess` weights: repeatedly remove the worst block of the layer that retains most.

    `counts` contains the number of blocks that each layer retains, and is updated. No number falls below `floors`.
    """
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


def check_layer_minimum(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    least: int,
    *,
    pattern: Pattern | None = None,
    layouts: Mapping[str, Layout] | None = None,
    within: Mask | None = None,
) -> None:
    """Raise `LayerCollapseError` if a density cannot retain `least` weights in each layer, for any scores.

    For patterns of blocks, whole blocks are counted. If blocks differ in size, a density that is too low by less than a
    block passes this check, and only `allocate` raises the error.

    Args:
        shapes: parameter name -> shape, for all tensors that are pruned.
        least: smallest number of weights of each layer; 0 for no minimum.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    if not least or not sizes:
        return
    pattern = pattern or Pattern.parse("unstructured")
    available = count_candidates(shapes, within)
    kept, known = count_retained(density, sum(sizes.values())), layouts or {}
    if pattern.blocks_of_rows:
        floors, largest = {}, 0
        for name in sizes:  # the smallest number of weights, at least `least`, that whole blocks can have
            heights, needed = pattern.blocks(shapes[name], known.get(name)).sizes, min(least, available[name])
            full, last = int(heights.max()), int(heights.min())
            last_blocks = range(-(-needed // last) + 1) if last < full else range(1)
            whole = min(count * last + -(-max(needed - count * last, 0) // full) * full for count in last_blocks)
            floors[name], largest = min(available[name], whole), max(largest, full)
        # Whole blocks retain at most half a block more than requested.
        if 2 * (sum(floors.values()) - kept) >= largest:
            raise too_few_weights_error(density, kept, floors, least, f" in whole blocks of {pattern}")
        return
    if pattern.m:
        alike = {name: torch.zeros(1).expand(shapes[name]) for name in sizes}
        candidates = _select_n_of_m_candidates(alike, pattern, known, within)
        available = {name: int(candidates[name].sum()) for name in sizes}
        if pattern.is_densest(density):
            return  # every candidate of the pattern is retained
    compute_layer_minimums(available, available, least, kept, density)


def check_mask_covers_tensors(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> None:
    """Raise `MaskError` if the names and shapes of the tensors in `within` are not exactly those in `shapes`."""
    if within is not None and within.shapes != dict(shapes):
        names = describe_name_difference(within, shapes)
        raise MaskError(
            "the mask to go on from is not of the tensors that have scores: "
            + (names or "a tensor has another shape in it")
        )


def count_candidates(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> dict[str, int]:
    """Return, for each layer that is not empty, the number of weights that can be retained."""
    check_mask_covers_tensors(shapes, within)
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    return sizes if within is None else {name: int(within[name].sum()) for name in sizes}


def compute_layer_minimums(
    counts: Mapping[str, int], available: Mapping[str, int], least: int, kept: int, density: float
) -> dict[str, int]:
    """Return the smallest number of weights that each layer retains: `least`, or all candidates of smaller layers."""
    floors = {name: min(least, available[name]) for name in counts}
    if none := [name for name, count in counts.items() if not count and not available[name]]:
        raise LayerCollapseError(
            f"density {density:g} is too low to keep a weight in each of {len(counts)} layers: {', '.join(none)} has"
            " none left (layer collapse)",
            "spare layers",
        )
    if sum(floors.values()) > kept:
        raise too_few_weights_error(density, kept, floors, least)
    return floors


def too_few_weights_error(
    density: float, kept: int, floors: Mapping[str, int], least: int, how: str = ""
) -> LayerCollapseError:
    """Return the error for a density that retains `kept` weights, fewer than the layers need together (`floors`)."""
    largest = max(floors, key=lambda name: floors[name])
    each, fewer = ("a weight", "") if least == 1 else (f"{least} weights", ", keep fewer in each (keep_at_least)")
    return LayerCollapseError(
        f"density {density:g} is too low to keep {each} in each of {len(floors)} layers: it is {kept:,} weights, and"
        f" those would be {sum(floors.values()):,}{how}, {floors[largest]:,} of them in {largest}",
        f"choose a higher one{fewer} or spare layers",
    )
