"""Prepare masks for display: pictures, fit of structures, rounds of gates, and detectors of the pruning moment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy

from ticketry.records.network import DISTANCE, TICKET, FirstLayer, Moment, Point
from ticketry.records.run import Round
from ticketry.records.ticket import LayerFit, Structure
from ticketry.report.tables.results import Group, LayerProfile, Results
from ticketry.report.wording import MINUS, NONE

T = TypeVar("T")


def pick_evenly_spaced(found: Sequence[T], most: int = 6) -> list[T]:
    """Return at most `most` items, evenly spread, including the first and the last item."""
    if len(found) <= most:
        return list(found)
    return [found[round(index * (len(found) - 1) / (most - 1))] for index in range(most)]


def layer_names(profiles: Iterable[LayerProfile]) -> list[str]:
    """Return the names of all layers in the order of the model."""
    return list(dict.fromkeys(name for profile in profiles for name in profile.layers))


MOST_FILTERS = 128


@dataclass(frozen=True)
class Picture:
    """A picture of the first layer's mask at one level: the level, its density, and the mask's data."""

    level: int
    density: float
    layer: FirstLayer


def first_layer_pictures(results: Results) -> list[Picture]:
    """Return three pictures: of the densest, the middle and the sparsest level among levels with a picture."""
    found: dict[int, Picture] = {}
    for group in results.groups_of_role(TICKET):
        for point in group.points.values():
            if point.first_layer is not None:
                found.setdefault(group.level, Picture(group.level, point.density, point.first_layer))
    levels = sorted(found)
    chosen = dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])) if levels else {}
    return [found[level] for level in chosen]


def mean_retained_share(layer: FirstLayer) -> float:
    """Return the share of a layer's weights that the mask retains; for a mask of inputs, the mean over inputs."""
    return float(retained_shares(layer).mean())


def retained_shares(layer: FirstLayer) -> numpy.ndarray:
    """Return which weights of the filters a mask retains (0 or 1), or the retained share of each input element."""
    if layer.kind == "filters":
        return unpack_bits(layer.data, layer.shape).astype(float)
    return numpy.frombuffer(layer.data, dtype=numpy.uint8).reshape(layer.shape) / 255.0


def unpack_bits(data: bytes, shape: Sequence[int]) -> numpy.ndarray:
    """Return the bits of `data`, the highest bit of each byte first, as an array of 0 and 1 of the given shape."""
    raw = numpy.frombuffer(data, dtype=numpy.uint8)
    return numpy.unpackbits(raw, count=math.prod(shape)).reshape(shape)


def mask_pixels(layer: FirstLayer) -> numpy.ndarray:
    """Return a mask as RGBA pixels: filters as tiles, or inputs in grey, with white for the largest retained share."""
    values = retained_shares(layer)
    if layer.kind == "inputs":
        mean = values.mean(axis=0)
        return to_opaque_pixels(to_grey_pixels(mean / (mean.max() or 1)))
    filters = values[:MOST_FILTERS]
    if filters.shape[1] != 3:
        filters = numpy.repeat(filters.mean(axis=1, keepdims=True), 3, axis=1)
    number, _, height, width = filters.shape
    columns = math.ceil(math.sqrt(number * (height + 1) / (width + 1)))
    rows = -(-number // columns)
    sheet = numpy.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=numpy.uint8)
    for index, tile in enumerate(filters):
        y, x = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[y : y + height, x : x + width] = to_opaque_pixels(tile.transpose(1, 2, 0))
    return sheet


def to_grey_pixels(values: numpy.ndarray) -> numpy.ndarray:
    return numpy.repeat(values[:, :, None], 3, axis=2)


def to_opaque_pixels(colours: numpy.ndarray) -> numpy.ndarray:
    pixels = numpy.full((*colours.shape[:2], 4), 255, dtype=numpy.uint8)
    pixels[:, :, :3] = numpy.round(255 * colours)
    return pixels


@dataclass(frozen=True)
class StructuredLevel:
    """A level whose masks were given a structure, with the record of the structure in each replicate."""

    group: Group
    structures: tuple[Structure, ...]

    @property
    def density_before(self) -> float:
        """Mean density of the level's masks before the structure was imposed."""
        return statistics.fmean(one.before for one in self.structures)

    @property
    def has_layers(self) -> bool:
        return all(one.layers for one in self.structures)

    def mean_fit_measure(self, name: str) -> float | None:
        """Return the measure of fit `name` for all layers together, mean over replicates; None if unknown."""
        values = [getattr(one.layers[-1], name) for one in self.structures if one.layers]
        return None if not values or None in values else statistics.fmean(values)


def structured_levels(results: Results) -> list[StructuredLevel]:
    """Return the levels whose tickets have a structure."""
    found = (
        StructuredLevel(group, tuple(point.structure for point in group.points.values() if point.structure))
        for group in results.groups_of_role(TICKET)
    )
    return [one for one in found if one.structures]


_SHARES = {
    "coverage": ("coverage", "share of the previously retained magnitude that the structured mask retains"),
    "null_coverage": ("no structure", "the same with the entries of each column shuffled among the rows"),
    "random_coverage": ("random", "with rows in random groups"),
    "fill": ("fill", "share of the structured mask that was removed before"),
}


def recorded_fit_measures(results: Results) -> dict[str, tuple[str, str]]:
    """Return, by name, title and meaning of each measure of fit that is recorded for some layer."""
    fits: list[LayerFit] = [
        fit for level in structured_levels(results) for one in level.structures for fit in one.layers
    ]
    return {share: words for share, words in _SHARES.items() if any(getattr(fit, share) is not None for fit in fits)}


def structured_level_to_draw(results: Results) -> StructuredLevel | None:
    """Return the middle one of the levels with pictures, to be drawn; None if no level has pictures."""
    found = [
        StructuredLevel(level.group, with_pictures)
        for level in structured_levels(results)
        if (with_pictures := tuple(one for one in level.structures if one.pictures))
    ]
    return found[len(found) // 2] if found else None


@dataclass(frozen=True)
class RoundChain:
    """Training rounds with gates of one search in one replicate; a run may have several parallel searches."""

    name: str
    rounds: tuple[Round, ...]

    @property
    def density(self) -> float:
        return self.rounds[-1].density

    @property
    def gate_shares_by_step(self) -> tuple[list[float], list[float]]:
        """Two lists: steps since the search began, and the share of gates that are on at each of these steps."""
        steps: list[float] = []
        open_shares: list[float] = []
        before = 0
        for one in self.rounds:
            steps += [before + step for step, _ in one.path]
            open_shares += [share for _, share in one.path]
            before += one.steps
            steps.append(before)
            open_shares.append(one.density)
        return steps, open_shares


def gate_round_chains(results: Results) -> list[RoundChain]:
    """Return the rounds of each search of the first replicate, densest first; at most six searches, evenly spread."""
    first = min((one.replicate for one in results.run.rounds), default=0)
    used = sorted((one for one in results.run.rounds if one.used and one.replicate == first), key=lambda one: one.level)
    groups: list[list[Round]] = []
    for one in used:
        if one.number == 1 or not groups:
            groups.append([])
        groups[-1].append(one)
    penalties = len({one.penalty for one in used}) > 1
    found = [RoundChain(_name_gate_search(group, penalties), tuple(group)) for group in groups]
    return pick_evenly_spaced(sorted(found, key=lambda chain: -chain.density))


def _name_gate_search(rounds: Sequence[Round], penalties: bool) -> str:
    inits = list(dict.fromkeys(f"{one.init:.3g}" for one in rounds))
    inside = inits[0] if len(inits) == 1 else f"{inits[0]} … {inits[-1]}"
    extra = f", λ {rounds[0].penalty:.2g}" if penalties else ""
    return f"{inside.replace('-', MINUS)}{extra} ({100 * rounds[-1].density:.3g} %)"


@dataclass(frozen=True)
class DetectorMoments:
    """The steps at which the replicates were pruned to one density, with the measurements of the detector."""

    level: int
    density: float
    moments: dict[int, Moment]

    @property
    def threshold(self) -> float:
        return next(iter(self.moments.values())).threshold

    @property
    def uses_distance_detector(self) -> bool:
        return all(moment.detector == DISTANCE for moment in self.moments.values())


def detector_moments(results: Results) -> list[DetectorMoments]:
    """Return the pruning steps of at most six levels with detector measurements, evenly spread, densest first."""
    found = []
    for group in groups_with_moment(results):
        moments = {r: point.moment for r, point in group.points.items() if point.moment and point.moment.measurements}
        if moments:
            found.append(DetectorMoments(group.level, group.density, moments))
    return pick_evenly_spaced(found)


def groups_with_moment(results: Results) -> list[Group]:
    """Return the levels for which the step of pruning is recorded, densest first."""
    found = [group for group in results.groups_of_role(TICKET) if any(point.moment for point in group.points.values())]
    return sorted(found, key=lambda group: -group.density)


def pruning_detector_names(groups: Sequence[Group], only_measured: bool = False) -> list[str]:
    """Return the names of detectors that chose when to prune; if `only_measured`, only those with measurements."""
    points = [point for group in groups for point in group.points.values()]
    return sorted({p.moment.detector for p in points if p.moment and (p.moment.measurements or not only_measured)})


def replicates_of_groups(groups: Sequence[Group]) -> list[int]:
    return sorted({replicate for group in groups for replicate in group.points})


def detector_threshold_text(group: Group) -> str:
    """Return the threshold of a level's detector; a dash if thresholds of replicates differ or are missing."""
    found = {p.moment.threshold for p in group.points.values() if p.moment and p.moment.measurements}
    return f"{found.pop():.3g}" if len(found) == 1 else NONE


def pruning_moment_text(results: Results, point: Point | None) -> str:
    """Format when and why a network was pruned: ``step 57 (3 ep), detected: 0.22``; a dash if that is unknown."""
    moment = point.moment if point else None
    if moment is None:
        return NONE
    epoch = results.run.steps.per_epoch
    epochs = f" ({moment.step / epoch:.3g} ep)" if isinstance(epoch, int) and epoch > 0 and moment.step else ""
    value = "" if math.isnan(moment.value_at_pruning) else f": {moment.value_at_pruning:.3g}"
    detecting = moment.measurements or results.run.settings.get("when") == "detect"
    how = "detected" if moment.detected else "latest allowed" if detecting else "as given"
    return f"step {moment.step:,}{epochs}, {how}{value}"
