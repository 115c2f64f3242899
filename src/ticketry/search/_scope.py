"""What the settings of a search say of masks: which parameters they touch, and how weights are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ticketry.core.pattern import UNSTRUCTURED
from ticketry.errors import UsageError
from ticketry.search._pattern import pattern_in

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.found import Seeds
    from ticketry.lab.lab import Lab, Result
    from ticketry.tasks.base import Task


class Sparing(Protocol):
    """Settings that spare layers."""

    @property
    def spare(self) -> tuple[str, ...]: ...

    @property
    def spare_output(self) -> bool: ...

    @property
    def spare_first_conv(self) -> bool: ...

    @property
    def embeddings(self) -> bool: ...


class Budgeting(Protocol):
    """Settings that say what a search may cost."""

    @property
    def budget(self) -> str: ...


class Pruning(Sparing, Budgeting, Protocol):
    """Settings that choose weights by a score."""

    @property
    def score(self) -> str: ...

    @property
    def distribution(self) -> str: ...

    @property
    def half_rate(self) -> tuple[str, ...]: ...

    @property
    def keep_at_least(self) -> int: ...


def prunable(lab: Lab, task: Task, settings: Sparing) -> Scope:
    """The parameters that the settings let a mask touch."""
    from ticketry.core.scope import scope

    return scope(
        lab.model(task),
        spare=settings.spare,
        output=not settings.spare_output,
        first_conv=not settings.spare_first_conv,
        embeddings=settings.embeddings,
    )


OF_CHANNELS = {"crop": "crop_gates", "snip": "snap"}
"""What scores of weights are called in their published structured forms."""


def check_score(settings: Pruning) -> None:
    """Tell a wrong word before anything is trained.

    Raises:
        UsageError: if the settings' score is not known, or ranks channels where single weights are chosen.
    """
    from ticketry.core.score import get, names
    from ticketry.core.structure.saliency import CHANNEL_SCORES, check_channel_score

    plain = settings.score.rpartition(":")[2]
    if is_structured(settings):
        check_channel_score(_of_channels(settings.score))
    elif plain in CHANNEL_SCORES and plain not in names():
        raise UsageError(f"score {settings.score!r} ranks whole channels: add --structured (structured=True)")
    else:
        get(settings.score)


def is_structured(settings: object) -> bool:
    """Whether whole channels are chosen."""
    return bool(getattr(settings, "structured", False))


def _of_channels(score: str) -> str:
    control, colon, plain = score.rpartition(":")
    return f"{control}{colon}{OF_CHANNELS.get(plain, plain)}"


def _looked_at(score: str) -> str:
    """What a score, or a control of one, sees of the data, in the words of `score.About.data`."""
    from ticketry.core.score import about
    from ticketry.core.structure.about import CHANNEL_ONLY

    plain = score.rpartition(":")[2]
    return (CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain)).data


def pruned(
    lab: Lab,
    task: Task,
    trained: Result,
    scope: Scope,
    within: str | None,
    density: float,
    settings: Pruning,
    seeds: Seeds,
    **more: Any,
) -> str:
    """Digest of the stored mask of a density, chosen by a result's weights among those that `within` keeps.

    A score that looks at examples sees a `Sample` of the training split, unless `more` names another. Of structured
    settings it is a mask of whole channels, of patterned ones a mask of the pattern.
    """
    from ticketry.lab.sample import Sample

    looked_at = _looked_at(settings.score)
    if looked_at == "no":
        more.pop("sample", None)
    elif looked_at == "shapes":
        more["sample"] = Sample(1, 1, seeds.mask)  # more of the same would only cost more
    else:
        more.setdefault("sample", Sample(seed=seeds.mask))
    if settings.keep_at_least:
        more.setdefault("keep_at_least", settings.keep_at_least)
    if is_structured(settings):
        more |= {"structured": True, "score": _of_channels(settings.score)}
        if (multiple := getattr(settings, "multiple", 1)) != 1:
            more["multiple"] = multiple
    else:
        more |= {"score": settings.score, "half_rate": settings.half_rate}
        if (pattern := pattern_in(settings)) != UNSTRUCTURED:  # masks are remembered since before there were others
            more["pattern"] = pattern
    return lab.prune(
        task,
        trained,
        scope,
        within=within,
        density=density,
        distribution=settings.distribution,
        seed=seeds.mask,
        **more,
    )


def check_norms(lab: Lab, task: Task, scope: Scope) -> None:
    """Make sure that all channels that may go pass a norm with a scale.

    Raises:
        UsageError: naming the first layer whose channels pass none.
        StructureError: if the network has no channels that can go.
    """
    from ticketry.core.structure.channels import candidates
    from ticketry.core.structure.roles import roles

    structure, parts = lab.structure(task), roles(lab.model(task))
    for position in candidates(structure, scope, parts):
        group = structure.groups[position]
        if not any(member.name in parts.scales for member in group.parameters):
            raise UsageError(
                f"channels are chosen by the scales of their norms, and those of {group.name} pass no norm: leave it"
                f" out (--spare {group.name}), or choose a network with norms behind every layer, such as resnet-20"
            )


def check_readers(lab: Lab, task: Task, scope: Scope) -> None:
    """Make sure that gates can be put on all channels that may go.

    Raises:
        UsageError: naming the first layer whose channels no layer with a known weight reads.
        StructureError: if the network has no channels that can go.
    """
    from ticketry.core.gates.channels import readers_of

    readers_of(lab.model(task), lab.structure(task), scope)
