"""Training that adds up how far each weight moves away from 0, and lets those fade that move towards it."""

from dataclasses import dataclass

import torch

import ticketry as tk
from ticketry.lab.training.variant import Effect, Variant


@dataclass(frozen=True, kw_only=True)
class Movement(Variant):
    """Weights w have the score -sum of w * gradient; those below 0 become a little smaller at each step."""

    name = "movement"
    fade: float = 0.01

    def effect(self, around):
        return MovementEffect(around, self.fade)


class MovementEffect(Effect):
    """State carried from step to step: the score of each weight."""

    def __init__(self, around, fade):
        super().__init__(around)
        self.fade = fade

    def begin(self, training, carried):
        self.weights = tk.scope(training.model).parameters(training.model)
        self.scores = {
            name: carried[name].clone().to(weight.device) if name in carried else torch.zeros_like(weight.detach())
            for name, weight in self.weights.items()
        }

    def after_backward(self):
        for name, weight in self.weights.items():
            self.scores[name] -= weight.detach() * weight.grad

    def after_step(self):
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight[self.scores[name] < 0] *= 1 - self.fade

    def state(self):
        return {name: score.to("cpu", copy=True) for name, score in self.scores.items()}

    def lasting(self, name):
        return True
