"""Choices that searches by gates and their trainings have in common. Needs no torch."""

from __future__ import annotations

from typing import Literal

Anneal = Literal["step", "epoch"]
LearningRates = Literal["recipe", "constant"]
Objective = Literal["loss", "reverse_kl", "forward_kl"]
Reset = Literal["paper", "code"]
