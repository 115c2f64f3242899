"""Several densities at once: what searches have in common whose networks do not come from one another."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.core.density import check_at_least, check_density, check_distribution
from ticketry.errors import UsageError
from ticketry.search._budget import Budgeted
from ticketry.search._pattern import Patterned


@dataclass(frozen=True, kw_only=True)
class Densities(Budgeted):
    """Densities to reach side by side, and layers that do not count."""

    density: tuple[float, ...] = ()
    """Share kept at the end; of several (0.5,0.2,0.1) each is searched for on its own, from one dense training. 0.1 if
    neither density nor sparsity is given."""
    sparsity: tuple[float, ...] = ()
    """Share removed at the end, instead of density."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not pruned (and not counted in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """Do not prune the last layer."""
    spare_first_conv: bool = False
    """Do not prune the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""

    def __post_init__(self) -> None:
        self.check_budget(trainings="one")
        _ = self.targets

    @property
    def targets(self) -> tuple[float, ...]:
        """The densities asked for, falling."""
        if self.density and self.sparsity:
            raise UsageError("give either density (share kept) or sparsity (share removed), and only one of them")
        removed = [check_density(sparsity=share) for share in self.sparsity]
        found = removed or [check_density(share) for share in self.density] or [0.1]
        if len(set(found)) < len(found):
            raise UsageError(f"each density is searched for once: {', '.join(map(str, found))}")
        return tuple(sorted(found, reverse=True))


@dataclass(frozen=True, kw_only=True)
class WeightSettings(Densities):
    """Densities to reach side by side, and how weights are chosen."""

    score: str = "magnitude"
    """What is kept: the highest by this score."""
    distribution: str = "global"
    """global, layerwise, uniform or erk: how the weights kept are spread over the layers."""
    half_rate: tuple[str, ...] = ()
    """Names of parameters pruned at half the rate, such as fc3.weight."""
    keep_at_least: int = 0
    """Weights that each layer keeps at least; with 0 a density that would empty a layer is an error that names it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distribution(self.distribution)
        check_at_least(self.keep_at_least)


@dataclass(frozen=True, kw_only=True)
class DensitySettings(Patterned, WeightSettings):
    """The same where blocks of weights or whole channels can be chosen instead."""

    structured: bool = False
    """Remove whole coupled channels, and train on in a physically smaller network. The density is of all weights,
    biases and norm parameters that can go. snip, crop are then those of gates on channels (SNAP; structured CroP);
    l1, l2, slimming rank channels too; keep_at_least counts channels, at least 1."""
    multiple: int = 1
    """With structured: channels go in blocks, so that each group that loses any keeps a multiple of this. With 16 the
    smaller network is nearly as much faster as its FLOPs are fewer, where it is trained in bf16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structured:
            check_structured(self.distribution, self.half_rate)
        check_multiple(self.multiple, structured=self.structured)
        self.check_pattern(
            structured=self.structured, half_rate=bool(self.half_rate), densities=self.densities_on_the_way
        )

    @property
    def densities_on_the_way(self) -> tuple[float, ...]:
        """Those of all masks that lead to the targets."""
        return self.targets


def check_structured(distribution: str, half_rate: tuple[str, ...]) -> None:
    """Raises `UsageError` for what has no meaning where whole channels are chosen."""
    if distribution not in ("global", "uniform"):
        raise UsageError(
            f"channels are distributed global or uniform, not {distribution}: a group may lie in many layers"
        )
    if half_rate:
        raise UsageError("half_rate is of single weights: whole channels of a layer go with those of its neighbours")


def check_multiple(multiple: int, *, structured: bool) -> None:
    """Raises `UsageError` for a number that cannot be meant."""
    if multiple < 1:
        raise UsageError(f"multiple is 1 or more channels, not {multiple}")
    if multiple != 1 and not structured:
        raise UsageError("multiple is of whole channels: add --structured (structured=True)")


def levels(settings: Densities) -> int:
    """How many tickets a replicate will find."""
    return len(settings.targets)
