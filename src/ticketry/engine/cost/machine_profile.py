"""What a machine takes for the work of kernels: made once by `tk.cost.calibrate`, and kept in a small file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ticketry.engine.cost.few_inputs import LIKE
from ticketry.engine.cost.work import Caches, Work
from ticketry.errors import CostError
from ticketry.files import content_of, parse_json, why_not_private, write_atomically
from ticketry.folders import exists
from ticketry_engine.bench.machine import another_machine
from ticketry_engine.kept_files import folder
from ticketry_engine.kernels.target import NEAR, Target, foreign, near_inputs

KIND = "ticketry.machine"
_MOST_BYTES = 1 << 20
SHIPPED = files("ticketry.engine.cost") / "profiles"
"""Profiles that come with the package."""


class MachineProfile(Struct, frozen=True):
    """Seconds of a processor for what kernels do, in a number format, on one thread. A value, and a JSON file.

    Examples:
        >>> profile = tk.cost.profile("zen4-avx512")
        >>> profile.about["vectors"], profile.about["threads"], profile.about["precision"]
        ('avx512', 1, 'fp32')
        >>> profile.target.lanes
        16
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        >>> costs = tk.cost.model(model, torch.randn(4, 3, 16, 16), target=profile, threads=1)
        >>> costs.floor < costs.estimate(tk.prune(model, 0.2)).value < costs.dense
        True
    """

    coefficients: dict[str, dict[str, float]]
    """Kind of operation -> what it does -> seconds for one of it."""
    call: float
    """Seconds of a call beside its operations."""
    torch: dict[str, float]
    """Seconds of an operation that runs in torch: for itself, for a byte, for a multiplication."""
    caches: tuple[int, int, int]
    """Bytes of a core's first and second cache, and of the last one what a core may count on."""
    lanes: int
    registers: int
    bf16: bool
    spread: float
    """Half of the 95 % interval of an estimate, by networks that were left out of the fit."""
    about: dict[str, Any]
    """Processor, vectors (avx512, avx2, …), threads, precision, versions, load, seconds that it took; JSON values."""

    @property
    def target(self) -> Target:
        """The processor as planners see it: what it is made for need not run here."""
        vectors = str(self.about["vectors"])
        near, of_few = near_inputs(self.caches[0]) if vectors == "avx512" else (NEAR, NEAR)
        seen = replace(foreign(vectors), lanes=self.lanes, registers=self.registers, bf16=self.bf16)
        return replace(seen, near=near, near_of_few=of_few, second=self.caches[1])

    @property
    def levels(self) -> Caches:
        """The caches by name."""
        return Caches(*self.caches)

    def seconds(self, work: Work) -> float:
        """What an operation takes, by its `work`. Raises `CostError` for a kind that was not calibrated."""
        known = self.coefficients.get(work.kind) or self.coefficients.get(LIKE.get(work.kind, ""))
        if known is None:
            raise CostError(
                f"the profile of {self.about.get('processor')} does not know {work.kind!r}: calibrate this machine anew"
            )
        return sum(known.get(name, 0.0) * value for name, value in work.features.items())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that it says."""
        text = json.dumps(msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; returns the path. Raises `CostError` if it cannot be."""
        document = {"kind": KIND, "format": 1, "digest": self.digest, "profile": msgspec.to_builtins(self)}
        try:
            write_atomically(Path(path), json.dumps(document, indent=1, allow_nan=False).encode())
        except (OSError, ValueError) as error:
            raise CostError(f"the profile cannot be written to {path}: {error}") from None
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> MachineProfile:
        """The profile in the file `path`. Raises `CostError` if there is none, or it is damaged."""
        try:
            return cls._read(content_of(Path(path), most=_MOST_BYTES), path)
        except OSError as error:
            raise CostError(f"{path} cannot be read as a profile: {error}") from None

    @classmethod
    def _read(cls, data: bytes, path: object) -> MachineProfile:
        try:
            document = parse_json(data)
            if not isinstance(document, dict) or document.get("kind") != KIND or document.get("format") != 1:
                raise CostError(
                    f"{path} is no profile of a machine of this version: tk.cost.calibrate().save(path) writes one"
                )
            found = msgspec.convert(document.get("profile"), cls)
        except (ValueError, RecursionError) as error:
            raise CostError(f"{path} cannot be read as a profile: {error}") from None
        if found.digest != document.get("digest"):
            raise CostError(f"{path} is damaged: its contents do not match its digest; calibrate anew")
        return found

    def check(self, threads: int, precision: str) -> None:
        """Raises `CostError` if it is of other threads or of another precision."""
        for fact, value in {"threads": threads, "precision": precision}.items():
            if self.about[fact] != value:
                raise CostError(
                    f"the profile of {self.about['processor']} is of {fact} {self.about[fact]}, and {value} is asked"
                    f" for: calibrate with it, or give {fact}={self.about[fact]!r}"
                )

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if isinstance(value, str | int | float))
        return f"Profile of a machine: {about}; an estimate is within {100 * self.spread:.0f} % in 95 of 100 cases"


def kept_path(vectors: str, precision: str) -> Path:
    """Where this machine's own profile is kept."""
    return folder("profiles") / f"{vectors}-{precision}.json"


def of_this_machine(vectors: str, threads: int, precision: str) -> MachineProfile:
    """The profile that `calibrate` kept here.

    Raises:
        CostError: there is none, or it is of another processor, of other threads or of another precision.
    """
    path = kept_path(vectors, precision)
    if why := why_not_private(path.parent):
        raise CostError(f"profiles of this machine are not read: {why}; set TICKETRY_CACHE to a folder of your own")
    if not exists(path):
        raise CostError(f"there is no profile of this machine in {precision}: tk.cost.calibrate() makes one")
    found = MachineProfile.load(path)
    if other := another_machine(found.about):
        raise CostError(f"the profile in {path} is of another processor ({other}): calibrate anew")
    found.check(threads, precision)
    return found


def names() -> list[str]:
    """Of the profiles of processors that come with the package."""
    return sorted(one.name.removesuffix(".json") for one in SHIPPED.iterdir() if one.name.endswith(".json"))


def named(name: str) -> MachineProfile:
    """The profile of that name, one of `names`."""
    return MachineProfile._read((SHIPPED / f"{name}.json").read_bytes(), name)


def kind_of(path: Path) -> str | None:
    """What a JSON file of ticketry's says it is; None if it cannot be read as one."""
    try:
        document = parse_json(content_of(path, most=1 << 26))
    except (OSError, ValueError, RecursionError):
        return None
    return str(document.get("kind")) if isinstance(document, dict) else None
