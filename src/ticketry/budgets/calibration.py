"""Calibrates a machine: times kernels in synthetic networks and fits the coefficients of a `MachineProfile`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.budgets.cost_model import half_interval
from ticketry.budgets.profiles import MachineProfile, cached_path
from ticketry.core.scope import scope
from ticketry.errors import CostError, EngineError, UsageError
from ticketry.files import make_folder, why_not_private
from ticketry_engine import compile
from ticketry_engine.bench.machine import machine
from ticketry_engine.costs.kernel_work import Processor, TimedOperations, time_operations
from ticketry_engine.costs.masked_model import CHANNELS_LAST, PLANAR, MaskedModel
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import generator, seed_torch

_VARIANTS = (
    (PLANAR, 1, 0),
    (CHANNELS_LAST, 0, 0),
    (PLANAR, 1, 1),
    (PLANAR, 4, 3),
    (CHANNELS_LAST, 16, 5),
    (PLANAR, 1, 2),
    (PLANAR, 2, 9),
    (CHANNELS_LAST, 32, 6),
    (PLANAR, 16, 4),
    (PLANAR, 0, 0),
    (CHANNELS_LAST, 8, 7),
    (PLANAR, 1, 8),
)
"""Layout, rows that share their columns (0: dense), and the seed of the densities."""

_SECOND_BATCH = 3
"""Every third variant is timed with a second batch size."""

_LEAST_SPREAD = 0.05
"""Least spread that a profile reports."""


@dataclass(frozen=True)
class Sample:
    """A network under a mask, timed."""

    network: str
    timed: TimedOperations


def calibrate(
    *,
    target: str = "host",
    precision: str = "fp32",
    networks: Sequence[str] | None = None,
    keep: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> MachineProfile:
    """Time this machine's kernels for a minute or two and cache the profile from which networks are estimated here.

    Synthetic networks (convolutions, linear layers, attention; wide, narrow, with small and large images) run under
    random masks of many densities: single weights, groups of rows, and dense, with small and large batches. One thread
    is timed by its processor time. Other load on the machine makes the profile worse.

    Args:
        target: "host", or "avx2" for kernels that use no more.
        precision: "fp32" or "bf16".
        networks: names of the networks to time, all by default; fewer take less time and cover fewer kernels.
        keep: whether to cache the profile for `tk.cost.model(..., target="calibrated")`.
        say: called with the name of each step.

    Raises:
        UsageError: for an unknown network.
        EngineError: if the processor has no such kernels.
        CostError: if the profile cannot be cached, because others can write to the cache.

    Examples:
        >>> profile = tk.cost.calibrate(networks=["linear"], keep=False)
        >>> profile.about["threads"], profile.spread >= 0.05
        (1, True)
    """
    began, busy = time.perf_counter(), time.process_time()
    here = Processor.here(target)
    names = tuple(NETWORKS) if networks is None else tuple(networks)
    if unknown := [name for name in names if name not in NETWORKS]:
        raise UsageError(f"there is no network {unknown[0]!r} to calibrate with, but {', '.join(NETWORKS)}")
    path = cached_path(here.vectors, precision)
    if keep and (why := why_not_private(path.parent)):
        raise CostError(f"the profile cannot be cached: {why}; set TICKETRY_CACHE to a folder of your own")
    samples = list(_take_samples(names, target, precision, say))
    if not samples:
        raise EngineError(f"no network that calibrates runs in kernels of {here.vectors}")
    about = machine()
    profile = MachineProfile(
        fit_coefficients(samples),
        _call_seconds(target, precision),
        _torch_seconds(),
        (here.caches.first, here.caches.second, here.caches.last),
        here.lanes,
        here.registers,
        here.bf16,
        max(_LEAST_SPREAD, half_interval(cross_validate(samples))),
        {
            "processor": about["processor"],
            "processor_kind": about["processor_kind"],
            "vectors": here.vectors,
            "threads": 1,
            "precision": precision,
            "versions": about["versions"],
            "load": about["load"],
            "took": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - busy, 1),
            "samples": sum(len(one.timed.seconds) for one in samples),
        },
    )
    if keep:
        make_folder(path.parent, private=True)
        profile.save(path)
        say(f"kept in {path}")
    return profile


def _take_samples(names: Sequence[str], target: str, precision: str, say: Callable[[str], None]) -> Iterator[Sample]:
    for name in names:
        say(f"timing the network {name!r}")
        design = NETWORKS[name]
        with private_random_state([]):
            seed_torch(0)
            model = design.build().eval()
            example = torch.randn(2, *design.shape)
        shapes = scope(model).shapes
        network = MaskedModel(model, example, shapes)
        for number, (layout, rows, seed) in enumerate(_VARIANTS):
            keep = random_rows(shapes, rows, seed)
            for more in range(2 if number % _SECOND_BATCH == 0 else 1):
                batch = design.batches[(number + more) % len(design.batches)]
                inputs = torch.randn(batch, *design.shape, generator=torch.Generator().manual_seed(0))
                try:
                    timed = time_operations(network, keep, inputs, target=target, precision=precision, layout=layout)
                except ValueError as error:
                    raise EngineError(f"the network {name!r} cannot calibrate this machine: {error}") from None
                if timed is not None:
                    yield Sample(name, timed)


def _call_seconds(target: str, precision: str) -> float:
    """Return the seconds of a call of a compiled module beside its operations."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    inputs = torch.zeros(1, 16)
    compiled = compile(model, None, inputs, threads=1, target=target, precision=precision)
    return median(_thread_seconds(lambda: compiled(inputs), 200))


def _torch_seconds() -> dict[str, float]:
    """Return the seconds of torch per operation, byte and multiplication."""
    small, large = torch.zeros(1), torch.zeros(1 << 22)
    conv, images = nn.Conv3d(16, 32, 3), torch.zeros(4, 16, 10, 10, 10)

    def second_least(run: Callable[[], object]) -> float:
        with torch.no_grad():
            return sorted(_thread_seconds(run, 7))[1]

    return {
        "op": second_least(lambda: [torch.tanh(small) for _ in range(100)]) / 100,
        "bytes": second_least(lambda: large + 1.0) / (2 * large.nbytes),
        "multiplications": second_least(lambda: conv(images)) / (4 * 8**3 * conv.weight.numel()),
    }


def _thread_seconds(run: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        begin = time.thread_time()
        run()
        taken.append(time.thread_time() - begin)
    return taken


# -- from times to coefficients ----------------------------------------------------------------------------------------

_PLAUSIBLE = (0.75, 1.3)
"""Range in which the time of a whole call corrects those of its operations; beyond, the clock is to blame."""

_SHORT = 5e-5
"""Seconds of calls that are not counted in the cross-validation."""


def fit_coefficients(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return kind of operation -> feature -> seconds."""
    features: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for sample in samples:
        timed = sample.timed
        factor = min(max(timed.whole / max(sum(timed.seconds), 1e-12), _PLAUSIBLE[0]), _PLAUSIBLE[1])
        for work, spent in zip(timed.works, timed.seconds, strict=True):
            features.setdefault(work.kind, []).append(work.features)
            seconds.setdefault(work.kind, []).append(factor * spent / timed.blocks)
    return {kind: fit(features[kind], seconds[kind]) for kind in features}


def cross_validate(samples: Sequence[Sample]) -> list[float]:
    """Return estimated / timed - 1 of each sample, estimated by coefficients fitted to the other networks.

    Kinds of operations that only one network has keep their coefficients. Calls of a few microseconds do not count.
    """
    everything, found = fit_coefficients(samples), []
    for network in dict.fromkeys(sample.network for sample in samples):
        rest = [sample for sample in samples if sample.network != network]
        known = {**everything, **fit_coefficients(rest)} if rest else everything
        acts = {name for one in everything.values() for name in one if name.startswith("act ")}
        for sample in samples:
            timed = sample.timed
            if sample.network != network or timed.whole < _SHORT:
                continue
            total = 0.0
            for work in timed.works:
                own = known[work.kind] | {name: everything[work.kind].get(name, 0.0) for name in acts}
                total += sum(own.get(name, 0.0) * value for name, value in work.features.items())
            found.append(total * timed.blocks / timed.whole - 1)
    return found


_RIDGE = 1e-3
"""Penalty of a coefficient relative to its column's size, so that two similar columns are both used."""

_FLOOR_SECONDS = 1e-6
"""Seconds below which errors count absolutely rather than relatively."""


def fit(features: Sequence[dict[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """Return feature -> seconds, at least 0, by least squares of relative errors.

    The error of a row is weighted by 1 / (its seconds + one microsecond).
    """
    names = sorted({name for one in features for name, value in one.items() if value})
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in features])
    goal = np.array(seconds)
    weight = 1 / (goal + _FLOOR_SECONDS)
    matrix, goal = matrix * weight[:, None], goal * weight
    size = np.sqrt((matrix**2).sum(axis=0))
    matrix = np.concatenate([matrix / size, _RIDGE * np.eye(len(names))])
    goal = np.concatenate([goal, np.zeros(len(names))])
    found = solve_non_negative(matrix, goal) / size
    return {name: float(value) for name, value in zip(names, found, strict=True) if value > 0}


def solve_non_negative(matrix: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the x >= 0 that minimises |matrix x - goal| (Lawson & Hanson 1974, chapter 23).

    >>> solve_non_negative(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    count = matrix.shape[1]
    square, side = matrix.T @ matrix, matrix.T @ goal
    x, passive = np.zeros(count), np.zeros(count, dtype=bool)
    least = 1e-10 * max(1.0, float(np.abs(side).max(initial=0.0)))
    for _ in range(10 * count):
        gradient = np.where(passive, -np.inf, side - square @ x)
        if passive.all() or gradient.max() <= least:
            break
        passive[int(gradient.argmax())] = True
        while True:
            y = np.zeros(count)
            y[passive] = np.linalg.lstsq(square[np.ix_(passive, passive)], side[passive], rcond=None)[0]
            bad = passive & (y <= 0)
            if not bad.any():
                x = y
                break
            step = float((x[bad] / (x[bad] - y[bad])).min())
            x = x + step * (y - x)
            passive &= x > 1e-15
            x[~passive] = 0.0
    return x


# -- synthetic networks and masks --------------------------------------------------------------------------------------

_LEAST_DENSITY, _MOST_DENSITY = 0.003, 0.95
"""Range of the layers' densities, drawn uniformly in the logarithm."""


class _Residual(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.two = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.other = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(inputs, channels, 1, stride, bias=False) if stride > 1 or inputs != channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.other(self.two(self.norm(self.one(x)).relu()))
        return torch.relu(y + (x if self.short is None else self.short(x)))


class _Inverted(nn.Module):
    """A depthwise convolution between two 1x1 convolutions, with a gate over channels."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = 4 * inputs
        self.up = nn.Sequential(nn.Conv2d(inputs, wide, 1), act())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide), act())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(wide, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, wide, 1), nn.Hardsigmoid())
        self.down = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.up(x))
        found: Tensor = self.down(y * self.gate(self.pool(y)))
        return found


class _Tokens(nn.Module):
    """Image patches as tokens, with attention and two linear layers."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.inside = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.inside(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        found: Tensor = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return found


def _stages(
    channels: int, *widths: int, kernel: int = 3, pool: type[nn.Module] = nn.MaxPool2d, head: int = 0
) -> nn.Module:
    """Return convolutions with norms, pooling after every second one, then one linear layer, or two with a head."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, kernel, 1, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        if number % 2:
            layers.append(pool(2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(channels, head), nn.ReLU(), nn.Linear(head, 20)] if head else [nn.Linear(channels, 20)]
    return nn.Sequential(*layers)


def _residuals(channels: int, *widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1), nn.ReLU()]
    for number, (one, other) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        layers.append(_Residual(one, other, 2 if number and one != other else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 20))


def _linear(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _flat(channels: int, width: int, size: int, head: int) -> nn.Module:
    layers = [nn.Conv2d(channels, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 5)]
    left = 2 * width * (size // 2 - 4) ** 2
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(left, head), nn.ReLU(), nn.Linear(head, 12))


def _inverted() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, 2, 1),
        nn.SiLU(),
        _Inverted(20, 28, 3, 1, nn.SiLU),
        _Inverted(28, 56, 5, 2, nn.Hardswish),
        _Inverted(56, 88, 3, 2, nn.ReLU6),
    )


@dataclass(frozen=True)
class SyntheticNetwork:
    """A network for calibration, and the batch sizes that it is timed with."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Shape of an example."""
    batches: tuple[int, ...]


NETWORKS: dict[str, SyntheticNetwork] = {
    "narrow": SyntheticNetwork(lambda: _residuals(3, 12, 12, 20, 20, 40, 40), (3, 32, 32), (1, 4, 16)),
    "middle": SyntheticNetwork(lambda: _residuals(3, 24, 24, 48, 48, 96, 96), (3, 28, 28), (2, 16)),
    "wide": SyntheticNetwork(lambda: _residuals(3, 80, 160, 320), (3, 16, 16), (1, 4, 16)),
    "deep planes": SyntheticNetwork(lambda: _stages(3, 40, 40, 88, 88, 176, 176, head=200), (3, 32, 32), (1, 3, 16)),
    "small planes": SyntheticNetwork(lambda: _stages(160, 320, 320, 448, 448, head=0), (160, 8, 8), (1, 2, 8)),
    "odd planes": SyntheticNetwork(lambda: _residuals(4, 36, 72, 144), (4, 21, 21), (2, 8)),
    "large planes": SyntheticNetwork(lambda: _stages(3, 16, 32, 48, 64, pool=nn.AvgPool2d), (3, 64, 64), (1, 8)),
    "large strides": SyntheticNetwork(lambda: _residuals(3, 20, 40, 72), (3, 64, 64), (1, 8)),
    "linear": SyntheticNetwork(lambda: _linear(600, 400, 400, 120, 10), (600,), (1, 8, 64, 192)),
    "wide linear": SyntheticNetwork(lambda: _linear(1536, 1200, 768, 256), (1536,), (1, 16, 128)),
    "flattened": SyntheticNetwork(lambda: _flat(1, 10, 24, 160), (1, 24, 24), (4, 48)),
    "inverted": SyntheticNetwork(_inverted, (3, 48, 48), (1, 8)),
    "tokens": SyntheticNetwork(lambda: _Tokens(3, 144, 4), (3, 36, 36), (1, 8)),
}
"""Layer sizes cover the common range; no network is one in use."""


def random_rows(shapes: Mapping[str, tuple[int, ...]], rows: int, seed: int) -> dict[str, Tensor]:
    """Return a random mask in groups of `rows` neighbouring rows, with a random density in each layer.

    With 0 rows everything is retained.
    """
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        source = generator(seed, "calibration", number)
        outputs, columns = shape[0], max(1, torch.Size(shape[1:]).numel())
        if not rows:
            found[name] = torch.ones(shape, dtype=torch.bool)
            continue
        share = float(torch.rand((), generator=source))
        density = _LEAST_DENSITY * (_MOST_DENSITY / _LEAST_DENSITY) ** share
        kept = torch.rand(-(-outputs // rows), columns, generator=source) < density
        kept[:, 0] |= ~kept.any(1)
        found[name] = kept.repeat_interleave(rows, 0)[:outputs].reshape(shape)
    return found
