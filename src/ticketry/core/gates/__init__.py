"""Soft masks that are trained together with the weights: each weight is multiplied by a trainable gate.

    g = gates.attach(model, init=0.0, kind="continuous")
    ...  # train model.parameters() and g.parameters(), add g.penalty(1e-8) to the loss, call g.anneal(progress)
    mask = g.harden()

Kinds of gates: `Continuous` (Savarese et al. 2020), `Stochastic` (its baseline ISS), `HardConcrete` (Louizos et al.
2018) and `BinaryConcrete` (Maddison et al. 2017; Arora & Teuscher 2025). `Balance` steers gates to a density.
"""

from ticketry.core.gates.attach import attach
from ticketry.core.gates.charges import Charges
from ticketry.core.gates.gates import Balance, Gates, Histogram
from ticketry.core.gates.kinds import (
    KINDS,
    BinaryConcrete,
    Continuous,
    HardConcrete,
    Kind,
    Moment,
    Stochastic,
    by_epoch,
    by_step,
    inverse_temperature,
)

__all__ = [
    "KINDS",
    "Balance",
    "BinaryConcrete",
    "Charges",
    "Continuous",
    "Gates",
    "HardConcrete",
    "Histogram",
    "Kind",
    "Moment",
    "Stochastic",
    "attach",
    "by_epoch",
    "by_step",
    "inverse_temperature",
]
