"""What the settings of a search say of masks: which parameters they touch, how weights are chosen, in which pattern."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.budgets.granularity import NONE
from ticketry.core.structure.pattern import UNSTRUCTURED, Distribution, Pattern, check_at_least
from ticketry.errors import UsageError
from ticketry.search.common.aims import (
    BY_COSTS,
    COUNTED,
    aim_of,
    by_value,
    chosen_in_blocks,
    costs_for,
    terms_of,
    weighed,
)
from ticketry.search.common.structure import structuring_in

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Result
    from ticketry.search.common.method import Replicate


@dataclass(frozen=True, kw_only=True)
class Patterned:
    """A pattern that masks are chosen in."""

    pattern: str = UNSTRUCTURED
    """What is kept or removed together, by the mean score of its weights: unstructured (single weights), 4x1, 16x1 (so
    many rows that are neighbours, at one column), channel (a whole row of one layer, not of all that are coupled), 2:4
    (at most 2 of every 4 inputs; the density is then 0.5 at most). A density is met as closely as whole blocks
    permit."""

    def check_pattern(
        self, *, structured: bool = False, structure: bool = False, half_rate: bool = False, densities: Iterable[float]
    ) -> None:
        """Raises `UsageError` for a pattern that is not known, or that does not go with the other settings.

        Args:
            structured, structure, half_rate: whether those settings are used.
            densities: of all masks on the way.
        """
        pattern = Pattern.parse(self.pattern)
        if pattern.unstructured:
            return
        if structured:
            raise UsageError(
                f"structured removes whole coupled channels, pattern {pattern} weights of one layer at a time: choose"
                " one of them"
            )
        if structure:
            raise UsageError(
                f"structure makes tickets of masks without structure, and those of pattern {pattern} have one: choose"
                " one of them"
            )
        if pattern.m and half_rate:
            raise UsageError(f"half_rate has no meaning with pattern {pattern}, by which all layers lose alike")
        for density in densities:
            pattern.check_density(density)


def pattern_in(settings: object) -> str:
    """What settings of any method ask for."""
    return settings.pattern if isinstance(settings, Patterned) else UNSTRUCTURED


@dataclass(frozen=True, kw_only=True)
class Sparing:
    """Layers that are not pruned."""

    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not pruned (and not counted in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """Do not prune the last layer."""
    spare_first_conv: bool = False
    """Do not prune the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""


@dataclass(frozen=True, kw_only=True)
class Scored(Sparing):
    """How weights are chosen by a score."""

    score: str = "magnitude"
    """What is kept: the highest by this score."""
    distribution: Distribution = "global"
    """global, layerwise, uniform or erk: how the weights kept are spread over the layers."""
    half_rate: tuple[str, ...] = ()
    """Names or patterns of layers pruned at half the rate, such as fc3 (the output layer in Frankle & Carbin)."""
    keep_at_least: int = 0
    """Weights that each layer keeps at least; with 0 a density that would empty a layer is an error that names it."""

    @property
    def other_score(self) -> str:
        """The score that masks are chosen by, if it is not the one in `score`; else empty."""
        chosen = score_of(self)
        return chosen if chosen != self.score else ""

    @property
    def sparsest(self) -> float | None:
        """The density of the last mask, or its share of a budget; None where the settings do not tell."""
        return None

    def check_score_settings(self) -> None:
        """Raises `UsageError` for what has no meaning, also where whole channels are chosen."""
        check_at_least(self.keep_at_least)
        if not is_structured(self):
            return
        if self.distribution not in ("global", "uniform"):
            raise UsageError(
                f"channels are distributed global or uniform, not {self.distribution}: a group may lie in many layers"
            )
        if self.half_rate:
            raise UsageError(
                "half_rate is of single weights: whole channels of a layer go with those of its neighbours"
            )


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Whole channels in place of weights."""

    structured: bool = False
    """Remove whole coupled channels, and train what is left as a physically smaller network. Density and rate are of
    all weights, biases and norm parameters that can go."""
    multiple: int = 1
    """With structured: channels go in blocks, so that each group that loses any keeps a multiple of this. With 16 the
    smaller network is nearly as much faster as its FLOPs are fewer, where it is trained in bf16."""

    def check_multiple(self) -> None:
        """Raises `UsageError` for a number that cannot be meant."""
        if self.multiple < 1:
            raise UsageError(f"multiple is 1 or more channels, not {self.multiple}")
        if self.multiple != 1 and not self.structured:
            raise UsageError("multiple is of whole channels: add --structured (structured=True)")


@dataclass(frozen=True, kw_only=True)
class ScoredParts(Patterned, Channels, Scored):
    """How weights, blocks of them or whole channels are chosen by a score."""

    structured: bool = False
    """Remove whole coupled channels, and train what is left as a physically smaller network. Density and rate are of
    all weights, biases and norm parameters that can go. snip, crop are then those of gates on channels (SNAP;
    structured CroP); l1, l2, slimming rank channels too; keep_at_least counts channels, at least 1."""

    def check_masks(self, densities: Iterable[float]) -> None:
        """Raises `UsageError` for what does not go together; `densities` are those of all masks on the way."""
        self.check_score_settings()
        self.check_multiple()
        by = structuring_in(self)
        if by is not None and self.structured:
            raise UsageError(
                "structured prunes whole channels in the search itself, structure makes tickets of masks without"
                " structure: choose one of them"
            )
        self.check_pattern(
            structured=self.structured,
            structure=by is not None,
            half_rate=bool(self.half_rate),
            densities=densities,
        )


def prunable(replicate: Replicate, settings: Sparing) -> Scope:
    """The parameters that the settings let a mask touch; what cannot be chosen among them is told here."""
    from ticketry.core.scope import scope

    chosen = scope(
        replicate.lab.model(replicate.task),
        spare=settings.spare,
        output=not settings.spare_output,
        first_conv=not settings.spare_first_conv,
        embeddings=settings.embeddings,
    )
    if isinstance(settings, Scored) and not is_structured(settings):
        _check_layers(replicate, chosen, settings)
    if is_structured(settings) and getattr(settings, "keep_at_least", 0) > 1:
        _check_channels(replicate, chosen, settings)
    if aim_of(settings):
        _check_budget(replicate, chosen, settings)
    return chosen


def _check_layers(replicate: Replicate, scope: Scope, settings: Scored) -> None:
    """Tell names of layers that are not pruned, and more weights to keep than there are, before anything is trained."""
    from ticketry.core.layer_minimum import check_least_of
    from ticketry.core.scope import match_names
    from ticketry.core.structure.layout import layouts

    match_names(scope, settings.half_rate, "half_rate")
    density, least, pattern = settings.sparsest, settings.keep_at_least, Pattern.parse(pattern_in(settings))
    if least and density is not None and not aim_of(settings):
        known = None if pattern.unstructured else layouts(replicate.lab.model(replicate.task), scope)
        check_least_of(scope.shapes, density, least, pattern=pattern, layouts=known)


def _check_channels(replicate: Replicate, scope: Scope, settings: Any) -> None:
    """Tell more channels to keep than the density has weights for, before anything is trained.

    Where one channel of each group is enough, as it mostly is, the first cut tells it: following the network takes
    seconds, which a run that is told again would need too.
    """
    from ticketry.core.structure.channel_masks import check_channels

    lab, task = replicate.lab, replicate.task
    density = settings.sparsest if isinstance(settings, Scored) else min(settings.targets)
    if density is not None:
        check_channels(
            lab.model(task),
            lab.structure(task),
            density,
            scope=scope,
            keep_at_least=settings.keep_at_least,
            multiple=getattr(settings, "multiple", 1),
        )


def _check_budget(replicate: Replicate, scope: Scope, settings: Any) -> None:
    """Tell a budget below the floor, and layers that have no price, before anything is trained."""
    from ticketry.budgets.allocation import check_floor, check_floor_of_costs
    from ticketry.core.layer_minimum import candidates
    from ticketry.lab.budget_masks import prices_of, remember_costs
    from ticketry.lab.measured_time import check_new

    share = min(settings.shares)
    kept = by_value(settings) or getattr(settings, "collapse", "raise") == "keep"
    least = getattr(settings, "keep_at_least", 0) or int(kept)
    if settings.aim in BY_COSTS:
        costs = costs_for(settings.aim, settings.profile)
        if settings.measured:
            check_new(replicate.lab, costs)
        remember_costs(replicate.lab, replicate.task, costs, scope)
        # What is below the cost of empty layers could not be read as a share.
        check_floor_of_costs(costs, candidates(scope.shapes, None), share * costs.dense, least)
        return
    what, prices = COUNTED[settings.aim], prices_of(replicate.lab, replicate.task, scope)
    check_floor(scope.sizes, prices, share, least=least, what=what)


OF_CHANNELS = {"crop": "crop_gates", "snip": "snap"}
"""What scores of weights are called in their published structured forms."""


def check_score(settings: Scored) -> None:
    """Tell a wrong word before anything is trained.

    Raises:
        UsageError: if the settings' score is not known, ranks channels where single weights are chosen, or may be below
            0 where it is weighed against what weights cost.
    """
    from ticketry.core.score import about, get, names, split_control
    from ticketry.core.structure.channel_scores import CHANNEL_SCORES, check_channel_score

    control, plain = split_control(settings.score)
    if is_structured(settings):
        check_channel_score(_of_channels(settings.score))
    elif plain in CHANNEL_SCORES and plain not in names():
        raise UsageError(f"score {settings.score!r} ranks whole channels: add --structured (structured=True)")
    else:
        get(settings.score)
        if weighed(settings) and (control == "inverted" or about(plain).signed):
            raise UsageError(
                f"score {settings.score!r} may be below 0, and cannot be weighed against what weights cost: take"
                f" another for {aim_of(settings)}, or the highest scores whatever they cost (--unweighed,"
                " unweighed=True)"
            )


def is_structured(settings: object) -> bool:
    """Whether whole channels are chosen."""
    return bool(getattr(settings, "structured", False))


def shrinks(settings: object) -> bool:
    """Whether tickets are trained as physically smaller networks."""
    by = structuring_in(settings)
    return is_structured(settings) or (by is not None and by.whole_channels)


def _of_channels(score: str) -> str:
    from ticketry.core.score import split_control

    control, plain = split_control(score)
    named = OF_CHANNELS.get(plain, plain)
    return f"{control}:{named}" if control else named


def score_of(settings: Scored) -> str:
    """The score that masks are chosen by: where layers are compared by what the loss changes without their weights,
    with a granularity for each or by value, magnitude, the default, stands for kfac."""
    compared = by_value(settings) or chosen_in_blocks(settings)
    return "kfac" if compared and settings.score == "magnitude" else settings.score


def _looked_at(score: str) -> str:
    """What a score, or a control of one, sees of the data, in the words of `score.About.data`."""
    from ticketry.core.score import about, split_control
    from ticketry.core.structure.channel_scores import CHANNEL_ONLY

    plain = split_control(score)[1]
    return (CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain)).data


def pruned(
    replicate: Replicate,
    trained: Result,
    scope: Scope,
    density: float,
    settings: Scored,
    *,
    within: str | None = None,
    **more: Any,
) -> str:
    """Digest of the stored mask of a density, chosen by a result's weights among those that `within` keeps.

    Of settings with a budget `density` is the share of that, and the mask is one that spends it.

    A score that looks at examples sees a `Sample` of the training split, unless `more` names another. Of structured
    settings it is a mask of whole channels, of patterned ones a mask of the pattern.
    """
    from ticketry.lab.scoring_sample import Sample

    lab, seeds, score = replicate.lab, replicate.seeds, score_of(settings)
    looked_at = _looked_at(score)
    if looked_at == "no":
        more.pop("sample", None)
    elif looked_at == "shapes":
        more["sample"] = Sample(1, 1, seeds.mask)  # more of the same would only cost more
    else:
        more.setdefault("sample", Sample(seed=seeds.mask))
    if settings.keep_at_least:
        more.setdefault("keep_at_least", settings.keep_at_least)
    if aim := terms_of(settings):
        more |= {"score": score, "distribution": settings.distribution}
        more["weighed"] = not getattr(settings, "unweighed", False)
        if chosen_in_blocks(settings):
            more["structure"] = getattr(settings, "structure", NONE)
        if by_value(settings):
            more["by_value"] = True
        return drawn(replicate, trained, scope, density, aim, within=within, **more)
    if is_structured(settings):
        more |= {"structured": True, "score": _of_channels(settings.score)}
        if (multiple := getattr(settings, "multiple", 1)) != 1:
            more["multiple"] = multiple
    else:
        more |= {"score": settings.score, "half_rate": settings.half_rate}
        if (pattern := pattern_in(settings)) != UNSTRUCTURED:  # masks are remembered since before there were others
            more["pattern"] = pattern
    return lab.prune(
        replicate.task,
        trained,
        scope,
        within=within,
        density=density,
        distribution=settings.distribution,
        seed=seeds.mask,
        **more,
    )


def drawn(replicate: Replicate, weights: Result, scope: Scope, share: float, aim: str = "", **chosen: Any) -> str:
    """Digest of the stored mask of a density, or of a share of the budget `aim`; remembered.

    Args:
        weights: that the score is of.
        chosen: how weights are chosen, see `Lab.prune` and `lab.budget_masks.budget_mask`.
    """
    from ticketry.lab.budget_masks import budget_mask

    lab, task, seed = replicate.lab, replicate.task, replicate.seeds.mask
    if not aim:
        return lab.prune(task, weights, scope, density=share, seed=seed, **chosen)
    return budget_mask(lab, task, weights, scope, terms=aim, share=share, seed=seed, **chosen)


def check_norms(replicate: Replicate, scope: Scope) -> None:
    """Make sure that all channels that may go pass a norm with a scale.

    Raises:
        UsageError: naming the first layer whose channels pass none.
        StructureError: if the network has no channels that can go.
    """
    from ticketry.core.structure.channel_choice import candidates

    lab, task = replicate.lab, replicate.task
    structure = lab.structure(task)
    for position in candidates(structure, scope):
        group = structure.groups[position]
        if not any(member.name in structure.roles.scales for member in group.parameters):
            raise UsageError(
                f"channels are chosen by the scales of their norms, and those of {group.name} pass no norm: leave it"
                f" out (--spare {group.name}), or choose a network with norms behind every layer, such as resnet-20"
            )
