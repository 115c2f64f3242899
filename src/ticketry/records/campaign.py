"""The record of a campaign: claims with their outcomes, the runs that they compare, and a table of all methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta, field

from ticketry.errors import StoreError
from ticketry.records.schema import Count, Density, NotNegative, Number, Part, Role, check_format, decode_record

FORMAT: Final = 1
OUTCOMES = ("confirmed", "refuted", "undecided")
_ADVICE = "Run the campaign again to rewrite the record; trainings in the store are reused"
_Outcome = Annotated[
    Literal["confirmed", "refuted", "undecided"], Meta(extra={"problem": f"not one of {', '.join(OUTCOMES)}"})
]


class FileVersion(Part, frozen=True):
    """A version of the campaign's file: its SHA-256, and the date since which it is used."""

    sha256: str
    since: str
    """Date and time from which this version of the file was used."""


class Side(Part, frozen=True):
    """One of the two kinds of networks that a claim compares, with its metric in each replicate."""

    run: str
    role: Role
    values: tuple[Number, ...] = ()
    """Metric of the network of each replicate, in the order of replicates."""
    level: Count | None = None
    """Level of the ticket or control; None if the claim's density identifies the level."""


class Claim(Part, frozen=True, kw_only=True):
    """The hypothesis that networks `a` are better than networks `b` by more than `above`, with its outcome."""

    name: str
    statement: str
    source: str = ""
    figure: str = ""
    """Result that the paper itself reports."""
    a: Side
    b: Side
    density: Density | None = None
    metric: str
    unit: str = ""
    higher_is_better: bool = True
    above: Number
    """Bound that the difference A minus B must exceed, in the metric's unit; positive means that A is better."""
    margin: Number
    confidence: Number
    family: str
    """Name of the family of claims that are corrected together for multiple testing."""
    again: str = ""
    """Name of the claim that this claim tests again on fresh replicates; empty if it is not a replication."""
    found: _Outcome
    n: Count
    limit: Count
    difference: Number | None = None
    """Mean of A minus B over replicates, in the metric's unit."""
    interval: tuple[Number, Number] | None = None
    sd: Number | None = None
    p_confirmed: Number = 1.0
    """p-value for confirming the claim, corrected for interim analyses and for the family."""
    p_refuted: Number = 1.0
    """p-value for refuting the claim, corrected for interim analyses and for the family."""
    more: Count | None = None
    """Estimated number of further replicates until a decision: 0 if the claim is decided, None if too many would be
    needed or no replicate has been tested yet (`n` is 0)."""
    unknown: str = ""
    """Name of a missing measurement without which no replicate can decide the claim; empty if nothing is missing."""
    seconds: NotNegative = 0.0
    """Training time of both sides' runs in seconds, including runs that other claims share."""
    noise: tuple[Number, ...] = ()
    """For each replicate, the metric of the dense network trained in a second data order, minus its metric in the first
    order (A/A differences)."""
    noise_missing: Count = 0
    """Number of tested replicates whose dense network has not been trained in a second data order."""


class BlockProvenance(Part, frozen=True, kw_only=True):
    """How a block (consecutive replicates of a run) was trained: precision, kernels, processor and date."""

    first: Count
    last: Count
    """Replicates `first` to `last - 1` form the block."""
    precision: str = ""
    kernels: tuple[str, ...] = ()
    """Kernels with which the block's networks were trained; empty if the record lacks them."""
    processor: str = ""
    date: str = ""
    """Date on which the block's record was written; empty if unknown."""


class PlannedTime(NamedTuple):
    """Planned and measured seconds of training for blocks of replicates."""

    planned: float = 0.0
    took: float = 0.0

    def add(self, other: PlannedTime) -> PlannedTime:
        """Return the sum with `other`: planned plus planned, measured plus measured."""
        return PlannedTime(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class CampaignRun(Part, frozen=True, kw_only=True):
    """A run of a campaign: one method, trained over all replicates."""

    name: str
    method: str
    title: str = ""
    task: str
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    controls: tuple[Role, ...] = ()
    replicates: Count = 0
    runs: tuple[str, ...] = ()
    """Names of the searches in the store, one for each block of replicates."""
    blocks: tuple[BlockProvenance, ...] = ()
    planned_seconds: NotNegative | None = None
    """Planned wall-clock time, in seconds, of the blocks that this store planned and trained; None without such
    blocks."""
    planned_took: NotNegative | None = None
    """Measured wall-clock time of the same blocks in seconds."""
    seconds: NotNegative = 0.0
    """Time of the searches of all blocks in seconds, including imported and earlier blocks, without A/A trainings."""
    failed: str = ""
    """Error with which the run stopped when the campaign was last executed; empty if it did not stop or was not
    needed."""


class SecondOrderRun(Part, frozen=True, kw_only=True):
    """A replicate's dense network, trained a second time in another data order to show the effect of chance."""

    of: str
    """Digest of task, recipe, seeds and precision, which identifies the dense network."""
    replicate: Count
    value: Number
    key: str = ""
    steps: Count = 0
    seconds: NotNegative = 0.0
    trained: bool = True
    """Whether the network was trained for this campaign; if False, it was already in the store."""


class MethodRow(Part, frozen=True, kw_only=True):
    """A row of the table that compares methods: networks of one role and density, with means over replicates."""

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
    """Number of steps of all trainings that the network needed, including the search."""
    flops: NotNegative | None = None
    seconds: NotNegative | None = None


class CampaignRecord(Part, frozen=True, kw_only=True, tag_field="kind", tag="campaign"):
    """The record of a campaign with all results so far; `scale` names the sizes of its networks and trainings."""

    format: Literal[1] = FORMAT
    name: str
    """Name of the campaign, followed by the name of the scale."""
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
    """Planned wall-clock time in seconds of all blocks that this store planned and trained."""
    planned_took: NotNegative = 0.0
    """Measured wall-clock time of the same blocks in seconds."""
    seconds: NotNegative = 0.0
    """Training time of all blocks in seconds, including blocks from bundles."""
    segments_asked: Count = 0
    segments_trained: Count = 0
    steps_trained: Count = 0
    """Number of steps that were trained for all claims together."""
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    config: str = ""
    """Text of the present version of the campaign file."""
    store: str = ""

    @property
    def planned_times(self) -> dict[str, PlannedTime]:
        """Planned and measured training time, by name of the run, of blocks that this store planned and trained."""
        return {
            run.name: PlannedTime(run.planned_seconds or 0.0, run.planned_took)
            for run in self.runs
            if run.planned_took is not None
        }

    @property
    def hypothesis_counts(self) -> tuple[int, int]:
        """Number of decided hypotheses, and number of all hypotheses.

        A claim and its replications are one hypothesis; it is decided if the claim or a replication is decided. Each of
        these is a separate test at its family's alpha. By the union bound, a hypothesis that is tested k times is
        falsely confirmed with a probability of at most k * alpha. The same bound holds for false refutation.
        """
        replicated = {claim.name: claim.again for claim in self.claims}
        decided = {_find_original_claim(claim.name, replicated) for claim in self.claims if claim.found != "undecided"}
        return len(decided), sum(not claim.again for claim in self.claims)

    @property
    def max_tests_per_hypothesis(self) -> int:
        """Largest number of tests (a claim and its replications) for one hypothesis; 0 if there are no claims."""
        replicated = {claim.name: claim.again for claim in self.claims}
        return max(Counter(_find_original_claim(claim.name, replicated) for claim in self.claims).values(), default=0)


def _find_original_claim(name: str, again: Mapping[str, str]) -> str:
    """Return the first claim of the chain of replications that ends with the claim `name`."""
    seen = set[str]()
    while again.get(name) and name not in seen:  # a damaged record may have a cycle
        seen.add(name)
        name = again[name]
    return name


def read_campaign_record(record: object, what: str = "campaign record") -> CampaignRecord:
    """Read the record of a campaign from its JSON values."""
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    if isinstance(record, Mapping) and (kind := record.get("kind")) != "campaign":
        raise StoreError(f"{what}: kind must be campaign, got {kind!r:.60}. {_ADVICE}")
    return decode_record(CampaignRecord, record, what=what, advice=_ADVICE)
