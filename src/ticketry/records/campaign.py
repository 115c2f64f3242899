"""The record of a campaign: claims with what was found, the runs they rest on, and a table of all of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta, field

from ticketry.errors import StoreError
from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role, check_format, read

FORMAT: Final = 1
OUTCOMES = ("confirmed", "refuted", "undecided")
_ADVICE = "Run the campaign again to write it anew; what is in the store is not trained again"
_Outcome = Annotated[
    Literal["confirmed", "refuted", "undecided"], Meta(extra={"problem": f"not one of {', '.join(OUTCOMES)}"})
]


class FileVersion(Part, frozen=True):
    """The campaign's file as it was from a time on: the first is of before anything was trained."""

    sha256: str
    since: str


class Side(Part, frozen=True):
    """One of the two that a claim compares."""

    run: str
    role: Role
    values: tuple[Number, ...] = ()
    """Of each replicate, in their order."""
    level: Count | None = None
    """Of tickets and their controls, where the claim has no density that tells."""


class Claim(Part, frozen=True, kw_only=True):
    """A minus B is above a bound; differences are turned so that above 0 A is the better one."""

    name: str
    statement: str
    source: str = ""
    """Paper and section."""
    figure: str = ""
    """What the source itself reports."""
    a: Side
    b: Side
    density: Density | None = None
    metric: str
    unit: str = ""
    higher_is_better: bool = True
    above: Number
    margin: Number
    confidence: Number
    family: str
    """Claims that are corrected together."""
    again: str = ""
    """The claim that this one asks again, on fresh replicates."""
    found: _Outcome
    n: Count
    """Replicates that were judged."""
    limit: Count
    """How many there may be."""
    difference: Number | None = None
    interval: tuple[Number, Number] | None = None
    sd: Number | None = None
    p_confirmed: Number = 1.0
    """Corrected for interim analyses and for the family."""
    p_refuted: Number = 1.0
    more: Count | None = None
    """Replicates that would likely decide, beyond those there are; 0 if it is decided, None if too many, or if none
    were judged (`n` is 0), so that nothing is known."""
    unknown: str = ""
    """What was not measured, so that no further replicate can decide it; empty if it may be decided, or is."""
    seconds: NotNegative = 0.0
    """Training of both sides' runs, those that other claims rest on too."""
    noise: tuple[Number, ...] = ()
    """A/A, of a claim about the task's metric: the dense network under a second order of the data, minus itself."""
    noise_missing: Count = 0
    """Replicates that were judged and whose dense network has not been trained in a second order."""


class BlockProvenance(Part, frozen=True, kw_only=True):
    """What decides the bits of a block of replicates, beside its settings."""

    first: Count
    last: Count
    """Of the replicates; the last is not among them."""
    precision: str = ""
    kernels: tuple[str, ...] = ()
    """Those that its networks were trained in; empty if its record does not tell."""
    processor: str = ""
    date: str = ""
    """When its record was written; empty if that does not tell."""


class PlannedTime(NamedTuple):
    """Of blocks that were planned and trained in one store, in seconds."""

    planned: float = 0.0
    took: float = 0.0
    processor: float = 0.0
    """Planned, of processors' time; of blocks for which that is known."""
    took_processor: float = 0.0

    def plus(self, other: PlannedTime) -> PlannedTime:
        """Of both."""
        return PlannedTime(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class CampaignRun(Part, frozen=True, kw_only=True):
    """A run of a campaign over its replicates."""

    name: str
    method: str
    title: str = ""
    task: str
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    controls: tuple[Role, ...] = ()
    replicates: Count = 0
    """Done."""
    runs: tuple[str, ...] = ()
    """Names of the searches in the store, block by block."""
    blocks: tuple[BlockProvenance, ...] = ()
    """Of the same."""
    planned_seconds: NotNegative | None = None
    """Of the blocks that were planned and trained in this store, as it was told before."""
    planned_took: NotNegative | None = None
    """Those took by the clock."""
    planned_processor: NotNegative | None = None
    """The same as processors' time of trainings, which does not have in it what else the machine does: planned …"""
    planned_took_processor: NotNegative | None = None
    """… and taken, by the blocks for which both are known."""
    seconds: NotNegative = 0.0
    """Searches of all blocks took, also those that were made elsewhere or before they were asked for; without A/A."""
    failed: str = ""
    """Why it could not go on, when the campaign was last carried out; empty if it did, or was not needed."""


class SecondOrderRun(Part, frozen=True, kw_only=True):
    """A replicate's dense network once more, under a second order of the data."""

    of: str
    """What network it is: a digest of task, recipe, seeds and precision."""
    replicate: Count
    value: Number
    """On the test split."""
    key: str = ""
    """Of the segment in the store."""
    steps: Count = 0
    seconds: NotNegative = 0.0
    trained: bool = True
    """For the campaign; if not, it was in the store."""


class MethodRow(Part, frozen=True, kw_only=True):
    """One network of the table of all methods: means over replicates."""

    run: str
    method: str
    role: Role
    density: Density
    n: Count
    mean: Number
    sd: Number | None = None
    interval: tuple[Number, Number] | None = None
    unit: str = ""
    steps: NotNegative | None = None
    """Of everything that it needed, the search included."""
    flops: NotNegative | None = None
    seconds: NotNegative | None = None


class CampaignRecord(Part, frozen=True, kw_only=True, tag_field="kind", tag="campaign"):
    """A campaign at a scale, as far as it has come."""

    format: Literal[1] = FORMAT
    name: str
    """Of the campaign and its scale."""
    title: str
    paper: str = ""
    scale: str
    files: tuple[FileVersion, ...]
    claims: tuple[Claim, ...]
    runs: tuple[CampaignRun, ...]
    table: tuple[MethodRow, ...] = ()
    twins: tuple[SecondOrderRun, ...] = ()
    metric: str = ""
    planned_seconds: NotNegative = 0.0
    """Of all blocks that were planned and trained in this store."""
    planned_took: NotNegative = 0.0
    """Those took by the clock."""
    planned_processor: NotNegative = 0.0
    """The same of processors' time, see `CampaignRun`: planned …"""
    planned_took_processor: NotNegative = 0.0
    """… and taken."""
    seconds: NotNegative = 0.0
    """All blocks took, also those of bundles."""
    segments_asked: Count = 0
    segments_trained: Count = 0
    steps_trained: Count = 0
    """For all claims together."""
    steps_alone: Count = 0
    """That claims would have trained each by itself."""
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    config: str = ""
    """The file itself, as it is now."""
    store: str = ""

    @property
    def planned(self) -> dict[str, PlannedTime]:
        """Of each run that has blocks of this store."""
        return {
            run.name: PlannedTime(
                run.planned_seconds or 0.0,
                run.planned_took,
                run.planned_processor or 0.0,
                run.planned_took_processor or 0.0,
            )
            for run in self.runs
            if run.planned_took is not None
        }

    @property
    def decided(self) -> int:
        """Claims that are confirmed or refuted."""
        return sum(claim.found != "undecided" for claim in self.claims)

    @property
    def hypotheses(self) -> tuple[int, int]:
        """Those decided, and all: a claim and the one that asks it again are one question, which either decides.

        Each asking is a test of its own, at its family's alpha: a question that is asked k times is confirmed falsely
        with at most k times alpha, and refuted falsely with at most as much (union bound).
        """
        asked = {claim.name: claim.again for claim in self.claims}
        decided = {_find_original_claim(claim.name, asked) for claim in self.claims if claim.found != "undecided"}
        return len(decided), sum(not claim.again for claim in self.claims)

    @property
    def max_tests_per_hypothesis(self) -> int:
        """How many times the question was asked that was asked most often; 0 without claims."""
        asked = {claim.name: claim.again for claim in self.claims}
        return max(Counter(_find_original_claim(claim.name, asked) for claim in self.claims).values(), default=0)


def _find_original_claim(name: str, again: Mapping[str, str]) -> str:
    """The claim that one leads back to, from each to the one that it asks again."""
    seen = set[str]()
    while again.get(name) and name not in seen:  # a record may say anything
        seen.add(name)
        name = again[name]
    return name


def read_campaign_record(record: object, what: str = "campaign record") -> CampaignRecord:
    """The record of a campaign, from its JSON values.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    if isinstance(record, Mapping) and (kind := record.get("kind")) != "campaign":
        raise StoreError(f"{what}: kind is {kind!r:.60}, not campaign. {_ADVICE}")
    return read(CampaignRecord, record, what=what, advice=_ADVICE)
