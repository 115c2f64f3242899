"""Profiles of machines, from which a network's costs are estimated without timing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from msgspec import Struct
from torch import nn

from ticketry.budgets.cost_model import digest_of, parse_value, save_value
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.errors import CostError, UsageError
from ticketry.files import content_of, why_not_private
from ticketry.folders import exists
from ticketry_engine.bench.machine import another_machine
from ticketry_engine.costs.gpu_latency import H100_BF16, GpuRates
from ticketry_engine.costs.kernel_work import LIKE, Caches, Processor, Work, plan_work
from ticketry_engine.costs.masked_model import CallSeconds, MaskedModel
from ticketry_engine.kept_files import folder

KIND = "ticketry.machine"
_LARGEST_FILE = 1 << 20
_SHIPPED = files("ticketry.budgets") / "machines"
_FACTS = ("processor", "processor_kind", "vectors", "threads", "precision")
"""Facts of a profile that its estimates repeat; older profiles lack some."""


class MachineProfile(Struct, frozen=True):
    """Seconds of a processor for the work of kernels, in one number format, on one thread. A value with a JSON file.

    Examples:
        >>> profile = tk.cost.profile("zen4-avx512")
        >>> profile.about["vectors"], profile.about["threads"], profile.about["precision"]
        ('avx512', 1, 'fp32')
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        >>> costs = tk.cost.model(model, torch.randn(4, 3, 16, 16), target=profile, threads=1)
        >>> costs.floor < costs.estimate(tk.prune(model, 0.2)).value < costs.dense
        True
    """

    coefficients: dict[str, dict[str, float]]
    """Kind of operation -> feature -> seconds for one of it."""
    call: float
    """Seconds of a call beside its operations."""
    torch: dict[str, float]
    """Seconds of an operation that runs in torch: per operation, byte and multiplication."""
    caches: tuple[int, int, int]
    """Bytes of a core's first and second cache, and of the last one that it can rely on."""
    lanes: int
    registers: int
    bf16: bool
    spread: float
    """Half the 95 % interval of an estimate, from networks that were left out of the fit."""
    about: dict[str, Any]
    """Processor, vectors (avx512, avx2, …), threads, precision, versions, load, duration; JSON values."""

    @property
    def processor(self) -> Processor:
        """The processor as the engine plans kernels for it; it need not be this one."""
        return Processor(str(self.about["vectors"]), self.lanes, self.registers, self.bf16, Caches(*self.caches))

    def seconds(self, work: Work) -> float:
        """Return the seconds of an operation. Raises `CostError` for a kind that was not calibrated."""
        known = self.coefficients.get(work.kind) or self.coefficients.get(LIKE.get(work.kind, ""))
        if known is None:
            raise CostError(
                f"the profile of {self.about.get('processor')} does not know {work.kind!r}: calibrate this machine anew"
            )
        return sum(known.get(name, 0.0) * value for name, value in work.features.items())

    def call_seconds(self, network: MaskedModel, keep: Mask | None, layout: str | None) -> CallSeconds:
        """Return the estimated seconds of a call.

        Args:
            network: a model with example inputs.
            keep: the mask to run it under; None for the unpruned network.
            layout: planar or channels-last; None for the one that the engine chooses.

        Raises:
            UnsupportedError: if the layout cannot run the network.
        """
        work = plan_work(network, keep, self.processor, precision=str(self.about["precision"]), layout=layout)
        others = {"call": self.call * max(1, work.regions)}
        spent = CallSeconds(dict.fromkeys(network.names, 0.0), others, work.in_torch)
        for one in work.native:
            seconds, parameter = self.seconds(one), network.parameter_of(one.label)
            if parameter is None:
                others[one.kind] = others.get(one.kind, 0.0) + seconds
            else:
                spent.layers[parameter] += seconds
        for operation, parameters, features in work.torch:
            seconds = sum(self.torch[name] * value for name, value in features.items())
            for name in parameters:
                spent.layers[name] += seconds / len(parameters)
            if not parameters:
                kind = f"{operation} in torch"
                others[kind] = others.get(kind, 0.0) + seconds
        return spent

    def facts(self) -> dict[str, object]:
        """Return what cost models record about this profile."""
        return {
            "target": str(self.about["processor"]),
            **{fact: self.about[fact] for fact in _FACTS if fact in self.about},
            "how": "estimated by a profile of the machine",
            "profile": self.digest[:16],
        }

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the contents."""
        return digest_of(self)

    def save(self, path: str | Path) -> Path:
        """Write the profile to a JSON file and return its path. Raises `CostError` if that fails."""
        return save_value(path, KIND, "profile", self, "profile")

    @classmethod
    def load(cls, path: str | Path) -> MachineProfile:
        """Return the profile in the file at `path`. Raises `CostError` if it is missing or damaged."""
        try:
            return cls._parse(content_of(Path(path), most=_LARGEST_FILE), path)
        except (OSError, ValueError) as error:
            raise CostError(f"{path} cannot be read as a profile: {error}") from None

    @classmethod
    def _parse(cls, data: bytes, path: object) -> MachineProfile:
        hint = f"{path} is no profile of a machine of this version: tk.cost.calibrate().save(path) writes one"
        return parse_value(data, cls, path, KIND, "profile", "a profile", hint)

    def check(self, threads: int, precision: str) -> None:
        """Raise `CostError` if the profile has other threads or another precision."""
        for fact, value in {"threads": threads, "precision": precision}.items():
            if self.about[fact] != value:
                raise CostError(
                    f"the profile of {self.about['processor']} is of {fact} {self.about[fact]}, and {value} is asked"
                    f" for: calibrate with it, or give {fact}={self.about[fact]!r}"
                )

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if isinstance(value, str | int | float))
        return f"Profile of a machine: {about}; an estimate is within {100 * self.spread:.0f} % in 95 of 100 cases"


@dataclass(frozen=True)
class GpuProfile:
    """Rates of a GPU for a network's layers, in one number format.

    Examples:
        >>> profile = tk.cost.profile("h100-bf16")
        >>> profile.gpu, profile.precision
        ('NVIDIA H100 80GB HBM3', 'bf16')
        >>> model = nn.Sequential(nn.Conv2d(64, 512, 3), nn.ReLU(), nn.Conv2d(512, 512, 3)).eval()
        >>> x = torch.randn(256, 64, 32, 32)
        >>> costs = tk.cost.model(model, x, target=profile, granularities=("weights", "rows:64"), densities=(0.1, 1))
        >>> costs.layers["2.weight"].curves["rows:64"].at(0.1) < 0.7 * costs.layers["2.weight"].dense
        True
    """

    gpu: str
    """Name by `torch.cuda.get_device_name`."""
    precision: str
    rates: GpuRates
    """Rates of its kernels and of dense layers."""
    spread: float
    """Half the 95 % interval of an estimate, from networks that were left out of the fit."""

    def check(self, threads: int, precision: str) -> None:
        """Raise `CostError` for another precision than this one's.

        Args:
            threads: not used by a GPU.
            precision: "fp32" is the default of calls and always passes.
        """
        if precision not in ("fp32", self.precision):
            raise CostError(f"the profile of {self.gpu} is of {self.precision}, and {precision} is asked for")

    def call_seconds(self, network: MaskedModel, keep: Mask | None, layout: str | None) -> CallSeconds:
        """Return the estimated seconds of a call.

        Args:
            network: a model with example inputs.
            keep: the mask to run it under; None for the unpruned network.
            layout: planar or None: a GPU's plan chooses layouts by itself.

        Raises:
            UnsupportedError: for the channels-last layout.
        """
        return self.rates.call_seconds(network, keep, layout)

    def facts(self) -> dict[str, object]:
        """Return what cost models record about this profile."""
        return {
            "target": self.gpu,
            "processor": self.gpu,
            "precision": self.precision,
            "how": "estimated by a profile of the GPU",
        }

    def __str__(self) -> str:
        return (
            f"Profile of a GPU: {self.gpu}, {self.precision}; an estimate is within {100 * self.spread:.0f} % in 95 of"
            " 100 cases"
        )


GPUS: Mapping[str, GpuProfile] = {
    "h100-bf16": GpuProfile("NVIDIA H100 80GB HBM3", "bf16", H100_BF16, spread=0.2),
}
"""Profiles of GPUs that come with the package."""


class Estimator:
    """Estimates a network's latency under masks from a profile: a `Timer`."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        profile: MachineProfile | GpuProfile,
        scope: Scope | None = None,
    ) -> None:
        """Raise `EngineError` if the model cannot be captured."""
        self.model, self._shapes = model, (scope or scope_of(model)).shapes
        self.names = tuple(self._shapes)
        upsampling = isinstance(profile, MachineProfile)
        self.network = MaskedModel(model, example_inputs, self.names, upsampling=upsampling)
        self._call_seconds: Callable[[MaskedModel, Mask | None, str | None], CallSeconds] = profile.call_seconds

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight in scope."""
        return self._shapes[name]

    @cached_property
    def dense_profile(self) -> CallSeconds:
        """Latency of the unpruned network, by what spends it."""
        return self._call_seconds(self.network, None, None)

    @property
    def dense_seconds(self) -> float:
        """Latency of the unpruned network."""
        return self.dense_profile.total

    def profile(self, mask: Mask, layout: str | None) -> CallSeconds:
        """Return the latency under a mask, by what spends it. Raises `UnsupportedError` if a layout cannot run it."""
        return self._call_seconds(self.network, mask, layout)

    def seconds(self, mask: Mask) -> float:
        """Return the latency under a mask, planned for this mask, in the layout that the engine would choose."""
        return self.profile(mask, None).total


# -- profiles by name --------------------------------------------------------------------------------------------------


def profile_names() -> list[str]:
    """Return the names of all profiles that come with the package, processors first."""
    return [*processor_names(), *GPUS]


def processor_names() -> list[str]:
    """Return the names of the processors' profiles that come with the package."""
    return sorted(one.name.removesuffix(".json") for one in _SHIPPED.iterdir() if one.name.endswith(".json"))


def profile(name: str | Path) -> MachineProfile | GpuProfile:
    """Return a profile by its name, or from a file that `calibrate` or `save` wrote.

    Profiles of processors are `MachineProfile`s; that of a GPU ("h100-bf16") is a `GpuProfile`.

    Args:
        name: of a profile, or the path of a file.

    Raises:
        UsageError: for an unknown name.
        CostError: if the file is missing or damaged.

    Examples:
        >>> tk.cost.profile("zen4-avx2").about["vectors"]
        'avx2'
    """
    if isinstance(name, Path) or "/" in name or name.endswith(".json"):
        return MachineProfile.load(name)
    if name in GPUS:
        return GPUS[name]
    if name in processor_names():
        return MachineProfile._parse((_SHIPPED / f"{name}.json").read_bytes(), name)
    raise UsageError(
        f"there is no profile {name!r}: there are {', '.join(profile_names())}, and files that calibrate wrote"
    )


def cached_path(vectors: str, precision: str) -> Path:
    """Return the path of this machine's own profile in the cache."""
    return folder("profiles") / f"{vectors}-{precision}.json"


def cached_profile(vectors: str, threads: int, precision: str) -> MachineProfile:
    """Return the profile that `calibrate` cached on this machine.

    Raises:
        CostError: if it is missing, or of another processor, other threads or another precision.
    """
    path = cached_path(vectors, precision)
    if why := why_not_private(path.parent):
        raise CostError(f"profiles of this machine are not read: {why}; set TICKETRY_CACHE to a folder of your own")
    if not exists(path):
        raise CostError(f"there is no profile of this machine in {precision}: tk.cost.calibrate() makes one")
    found = MachineProfile.load(path)
    if other := another_machine(found.about):
        raise CostError(f"the profile in {path} is of another processor ({other}): calibrate anew")
    found.check(threads, precision)
    return found
