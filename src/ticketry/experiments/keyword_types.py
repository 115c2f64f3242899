"""The keyword arguments of `verify`, `bench` and `restructure`, for type checkers: the fields of their options.

A single value stands for a tuple of one, see `keywords.settings_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict

from ticketry.records.verdict import Claim


class LabKeywords(TypedDict, total=False):
    """Of `options.LabOptions`."""

    store: str | PathLike[str]
    data: str | PathLike[str] | None
    workers: int | None
    on: str
    device: str
    precision: str
    threads: int
    devices: int
    parallel: str
    norms: str
    kernels: str
    checkpoint_seconds: float
    log: str | Sequence[str]


class VerifyKeywords(LabKeywords, total=False):
    """Of `VerifySettings` too."""

    about: Literal["", "ticket", "procedure"]
    controls: str | Sequence[str]
    dense_at: Literal["budget", "cost"]
    claim: Claim | None
    margin: float | None
    least_spread: float | None
    confidence: float
    interim: int | Sequence[int]
    seeds: int | None
    after: int
    noise: bool
    references: bool


class ModelKeywords(TypedDict, total=False):
    """Of `options.ModelOptions`."""

    weights: Literal["trained", "start"]
    task: str
    trust: bool
    data: str | PathLike[str] | None


class BenchKeywords(ModelKeywords, total=False):
    """Of `options.BenchOptions` too."""

    batch: int | Sequence[int]
    against: str | Sequence[str]
    precision: Literal["fp32", "bf16"]
    threads: int
    rounds: int
    cold: bool
    clock: Literal["wall", "cpu"]
    cores: int | Sequence[int]
    tune: bool
    densities: float | str | Sequence[float | str]
    pattern: str


class StructureKeywords(ModelKeywords, total=False):
    """Of `options.StructureOptions` too."""

    rows: int
    density: float | str | None
    plus: float
    method: str
    collapse: str
    score: str
    coupled: str
    spare: str | Sequence[str]
    seed: int
    null: bool
