"""Training with a penalty that makes weights, filters or norm scales small; what is small is then removed once.

The network is trained with a penalty in its loss up to a step. Then what the penalty has made small is removed, down to
the density, and the rest trains on to the end of the same schedule without the penalty, momentum included. The three
penalties are those of network slimming (l1_scales: L1 on the scales of norms; Liu et al., "Learning Efficient
Convolutional Networks through Network Slimming", 2017, arXiv 1708.06519) and of DeepHoyer (hoyer_square on weights,
group_hoyer_square on filters and input channels; Yang, Wen & Li 2020, arXiv 1908.09979). Costs one training with the
penalty up to the pruning step, which all densities share, and the rest of one for each density.

hoyer_square removes single weights by magnitude. The two other penalties remove whole coupled channels, by the scale of
their norms (l1_scales) or the L2 norm of their weights (group_hoyer_square), and training continues in a physically
smaller network. This implementation departs from the papers as follows. Everything happens in one schedule; the papers
train twice or more. Weights are removed down to a density, at which methods are compared; DeepHoyer has a threshold on
weights (1e-4 or a share of their spread). As in the authors' code, group_hoyer_square is a penalty on the rows and
columns of each weight, although channels are removed with everything that is coupled to them. The penalty is on weights
in scope, or on the scales of all norms. The dense network is trained without a penalty, only for comparison. Controls
begin with the weights at the pruning step.

With --structure rows:4 (or rows:16, filters) the penalty is on these blocks of each weight: group_hoyer_square of their
L2 norms, or group_lasso (the sum of the norms, each times the square root of the block's size; Yuan & Lin 2006). Whole
blocks are then removed, by the mean magnitude of their weights, and the network retains its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Training
from ticketry.search.common.pruning import (
    check_score_setting,
    parse_pruning_step,
    prunable_scope,
    prune,
    require_norm_scales,
    train_after_pruning,
)
from ticketry.search.common.settings import NONE, Family, ParsedStructure, ScoreSettings

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.variants import Penalty

STRENGTHS = {"l1_scales": 1e-4, "hoyer_square": 1e-4, "group_hoyer_square": 1e-3, "group_lasso": 1e-4}
"""Default strength of each penalty. l1_scales: as in network slimming for VGG (its ResNets use 1e-5).
group_hoyer_square: as in DeepHoyer's code. The two others are our choice."""
_OF_BLOCKS = ("group_hoyer_square", "group_lasso")
SCORES = {"l1_scales": "slimming", "hoyer_square": "magnitude", "group_hoyer_square": "l2"}


ABOUT = About(
    paper="Liu et al. 2017 (slimming); Yang et al. 2020 (HoyerSquare)",
    prunes="during training",
    costs="1 a density",
    removes="both",
    score="by penalty",
)


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of training with a penalty.

    Examples:
        >>> run = tk.run("regularised", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    structures: ClassVar[tuple[Family, ...]] = ("blocks",)
    points: ClassVar[tuple[str, ...]] = ("until",)
    structure: str = "none"
    """Blocks of weights that are penalised and removed together: rows:4, rows:16 (so many neighbouring rows, at one
    column), filters (whole rows of one layer), or none."""
    until: str = "50%"
    """The step up to which the network is trained with the penalty, and at which it is pruned."""
    penalty: Literal["l1_scales", "hoyer_square", "group_hoyer_square", "group_lasso"] = "hoyer_square"
    """Penalty: l1_scales (on scales of norms), hoyer_square (on weights), group_hoyer_square (on filters and channels,
    or on the blocks of a structure) or group_lasso (on the blocks of a structure)."""
    strength: float | None = None
    """Coefficient of the penalty in the loss; by default 1e-3 for group_hoyer_square and 1e-4 for all others."""
    score: str = ""
    """Score by which the highest weights are retained. By default it fits the penalty: slimming for l1_scales,
    magnitude for hoyer_square and with a structure, l2 for group_hoyer_square without one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength is not None and not 0 < self.strength <= 1e6:
            raise UsageError(f"strength is the coefficient of the penalty, above 0, at most 1e6, not {self.strength}")
        fits = _OF_BLOCKS if self.has_blocks else SCORES
        if self.penalty not in fits:
            raise UsageError(
                f"penalty {self.penalty} and structure {self.structure} do not go together: with a structure, such as"
                f" rows:4, the penalty is {' or '.join(_OF_BLOCKS)}, without one {', '.join(SCORES)}"
            )

    @property
    def has_blocks(self) -> bool:
        return self.structure != NONE

    @cached_property
    def parsed_structure(self) -> ParsedStructure:
        """Weights that are removed together: blocks of `structure`, or channels if the penalty is on channels."""
        if not self.has_blocks and self.penalty in ("l1_scales", "group_hoyer_square"):
            return ParsedStructure(NONE, channels=True)
        return ParsedStructure.parse(self.structure, self.structures)


def plan(settings: Settings) -> list[Training]:
    """Plan one training with the penalty that all densities share, then for each density the training after pruning."""
    return [Training(last=settings.until), *settings.plan_tickets(first=settings.until)]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    from ticketry.core.score import split_control

    fitting = "magnitude" if settings.has_blocks else SCORES[settings.penalty]
    settings = replace(settings, score=settings.score or fitting)
    check_score_setting(settings)
    lab, whole = replicate.lab, replicate.dense_training
    step = parse_pruning_step(whole, settings.until, "the penalty holds", "it")
    scope = prunable_scope(replicate, settings)
    penalty = _make_penalty(replicate, scope, settings)
    if split_control(settings.score)[1] == "slimming":
        require_norm_scales(replicate, scope)
    dense = replicate.train_dense(step)
    yield dense
    shrinking = replicate.from_initialisation(variants=[penalty]).shortened_to(step)
    state = lab.train(shrinking, label=f"with {settings.penalty}", measure=False)

    def find_ticket(level: int, density: float) -> Found:
        mask = prune(replicate, state, scope, density, settings)
        return train_after_pruning(replicate, dense.result, state, mask, settings, level=level, density=density)

    yield from replicate.find_each(find_ticket, settings.targets)


def _make_penalty(replicate: Replicate, scope: Scope, settings: Settings) -> Penalty:
    from ticketry.core.structure.layout import find_roles
    from ticketry.lab.training.variants import Penalty

    model = replicate.lab.model(replicate.task)
    if settings.penalty == "l1_scales":
        scales = find_roles(model).scales
        names = tuple(name for name, _ in model.named_parameters() if name in scales)
        if not names:
            raise UsageError(
                f"penalty l1_scales is on the scales of norms, and {type(model).__name__} has none: choose a network"
                " with batch norm, such as resnet-20 or vgg-16, or another penalty"
            )
    else:
        names = tuple(name for name, shape in scope.shapes.items() if len(shape) > 1)
    strength = STRENGTHS[settings.penalty] if settings.strength is None else settings.strength
    return Penalty(kind=settings.penalty, strength=strength, names=names, pattern=settings.parsed_structure.pattern)
