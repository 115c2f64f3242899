"""Soft masks: gates that are trained with the weights, and searches that turn them into masks. Needs no torch."""

from typing import Literal

Anneal = Literal["step", "epoch"]
LearningRates = Literal["recipe", "constant"]
Objective = Literal["loss", "reverse_kl", "forward_kl"]
Reset = Literal["paper", "code"]
