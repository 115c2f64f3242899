"""What is told of each layer of a model in sparse training: where it runs, with how many weights, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ticketry_engine.kernels.window import Array
from ticketry_engine.results import Layer
from ticketry_engine.training.lowering import kind_of
from ticketry_engine.training.lstm_unit import LstmUnit
from ticketry_engine.training.tracing import LAYERS
from ticketry_engine.training.units import Unit

ALL_WEIGHTS = "all weights"
"""Kernels of a layer that computes with its pruned weights, as zeros."""


def rows_of(
    model: nn.Module,
    mask: Collection[str] | None,
    kept: Mapping[str, Array],
    units: Sequence[Unit],
    lstms: Sequence[LstmUnit],
) -> list[Layer]:
    """A row for each layer with weights that kernels may know, and for others under the mask, without times.

    Args:
        mask: names of the parameters under it.
        kept: of each layer under the mask, by the name of its module, which weights are kept.
        units, lstms: of the model, as they were called last.
    """
    inside = {name for unit in units for name in unit.inside()}
    dense = {name for unit in units for name in unit.dense()}
    reasons = {name: why for unit in units for name, why in unit.reasons().items()}
    held = {name.rpartition(".")[0] for name in mask or ()}
    recurrent = {unit.name: unit for unit in lstms}
    rows = []
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS):
            if name in recurrent:
                rows.append(_of_lstm(recurrent[name]))
            elif name in held:
                why = f"no kernels for {type(module).__name__}"
                rows.append(Layer(name, type(module).__name__.lower(), "torch", "", None, None, "", None, None, why))
            continue
        found = kept.get(name)
        density = None if found is None else float(found.mean())
        count = None if found is None else int(found.sum())
        kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
        if name in inside:
            how = ALL_WEIGHTS if name in dense else "sums, products"
            rows.append(Layer(name, kind, "engine", how, density, count, "", None, None, ""))
        else:
            plain = kind_of(module) in LAYERS
            why = reasons.get(name, "not called as a module" if plain else f"no kernels for {type(module).__name__}")
            rows.append(Layer(name, kind, "torch", "", density, count, "", None, None, why))
    return rows


def _of_lstm(unit: LstmUnit) -> Layer:
    why = unit.why
    if why:
        return Layer(unit.name, "lstm", "torch", "", unit.density, unit.count, "", None, None, why)
    return Layer(unit.name, "lstm", "engine", "sums, products", unit.density, unit.count, "", None, None, "")
