"""Training with gates: the loop, with a second set of parameters and a second optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.core.gates import Balance, Gates, attach
from ticketry.core.gates.channels import attach_channels
from ticketry.core.mask import Mask
from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.structure.group import Structure
from ticketry.errors import ScopeError, TrainingError
from ticketry.lab.loop import Loop, TrainingState, rebuilt, set_learning_rate
from ticketry.lab.objective import check_scores, divergence
from ticketry.lab.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from ticketry.lab.schedules import learning_rate
from ticketry.lab.segment import Segment
from ticketry.lab.shrunk import task_structure
from ticketry.tasks.course import Course

# How often, in a whole schedule, the gates that are on are counted.
_LOOKS = 100
_BINS = 20
"""Of the histogram of gates in a record."""


class GatedLoop(Loop):
    """A segment in training whose weights have gates. Losses include the penalty; clipping is of the weights alone.

    Over frozen weights nothing but the gates changes: no weight, no momentum, no statistic of batch norm. The network
    is in eval mode (no dropout), but batch norm normalises by the batch at hand: the running statistics are those of
    the dense network, by which the signal of a sparse one would fade from layer to layer.
    """

    gates: Gates

    def __init__(self, course: Course, segment: Segment, state: TrainingState, mask: Mask | None) -> None:
        super().__init__(course, segment, state, mask)
        assert segment.gates is not None
        self._gating = segment.gates
        self.gates = attached(segment, self.model, mask, state.gates, lambda: task_structure(self.task, course))
        self._gate_recipe = segment.gates.recipe(segment.recipe)
        self._gate_optimizer = make_optimizer(self._gate_recipe, self.gates)
        load_optimizer(self._gate_optimizer, self.gates, _part(state.gates, "optimizer/"))
        self._look_every = look_every(segment)
        self._kept = [row.tolist() for row in state.gates.get("kept", torch.zeros(0, 0))]
        self._balance = None if self._gating.density is None else Balance(self.gates, self._gating.density)
        if self._balance:
            self._balance.multiplier = state.gates.get("multiplier")
        if self._gating.frozen:
            self.model.eval().requires_grad_(False)
        self._norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]

    def train_until(self, last: int, tick: Callable[[], None]) -> None:
        super().train_until(last, tick)
        self._anneal()

    def state(self) -> TrainingState:
        found = super().state()
        found.gates = {
            **{f"s/{name}": s.detach().to("cpu", copy=True) for name, s in self.gates.named_parameters()},
            "round": torch.tensor(self.gates.round),
            **{
                f"optimizer/{name}": value.clone()
                for name, value in optimizer_tensors(self._gate_optimizer, self.gates).items()
            },
            "kept": torch.tensor(self._kept, dtype=torch.int64).reshape(len(self._kept), len(self.gates.parameters())),
        }
        if self._balance and self._balance.multiplier is not None:
            found.gates["multiplier"] = self._balance.multiplier.to("cpu", copy=True)
        return found

    def facts(self) -> dict[str, Any]:
        names = [name for name, _ in self.gates.named_parameters()]
        first, every = self.segment.first, self._look_every
        looked = range((first // every + 1) * every, self.step + 1, every)
        return {
            "gating": {
                "round": self.gates.round + 1,
                "density": self.gates.density(),
                "soft_density": self.gates.soft_density(),
                "ties": sum(self.gates.ties().values()),
                "histogram": list(self.gates.histogram(_BINS).total),
                "names": names,
                "kept": [[step, *counts] for step, counts in zip(looked, self._kept, strict=True)],
                # What `kept` is of, where the histogram counts fewer: gates of blocks, and not weights.
                **({"weights": self.gates.weights} if self._gating.pattern != UNSTRUCTURED else {}),
            }
        }

    def _ready(self) -> None:
        self._anneal()
        self.gates.set_step(self.step)

    def _held(self) -> list[object]:
        return [*super()._held(), list(self.gates.parameters())]

    def _one_step(self, batch: Any) -> None:
        self._ready()
        self._gate_optimizer.zero_grad(set_to_none=True)
        super()._one_step(batch)
        if self._balance:
            self._balance.add_gradients()
        segment = self.segment
        lr = learning_rate(self._gate_recipe, self.step, total=segment.total, per_epoch=segment.per_epoch)
        set_learning_rate(self._gate_optimizer, lr)
        self._gate_optimizer.step()
        if (self.step + 1) % self._look_every == 0:
            self._kept.append(list(self.gates.kept().values()))

    def _loss(self, batch: Any) -> Tensor:
        gating = self._gating
        with self.gates.drawing(), self._statistics():
            loss = super()._loss(batch) if gating.objective == "loss" else self._divergence(batch)
        return loss + self.gates.penalty(gating.penalty) if gating.penalty else loss

    def _divergence(self, batch: Any) -> Tensor:
        """Of the gated network's outputs from those of the bare weights, both in the same mode."""
        outputs, targets = self._session.outputs(self.model, batch)
        check_scores(self.task, outputs, targets)
        with torch.no_grad(), self.gates.lifted():
            bare, _ = self._session.outputs(self.model, batch, of="bare")
        return divergence(outputs, bare, reverse=self._gating.objective == "reverse_kl")

    def _statistics(self) -> contextlib.AbstractContextManager[None]:
        return batch_statistics(self._norms) if self._gating.frozen else contextlib.nullcontext()

    def _anneal(self) -> None:
        segment = self.segment
        try:
            self.gates.anneal(self._gating.progress(self.step, total=segment.total, per_epoch=segment.per_epoch))
        except TrainingError:
            self._look_at_losses()  # where the loss was no number before, that is what to tell
            raise


@contextlib.contextmanager
def batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms in eval mode normalise by the batch at hand and remember nothing, for the length of a block."""
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance


def look_every(segment: Segment) -> int:
    """Iterations between two counts of the gates that are on; a function of the schedule alone."""
    return max(1, segment.total // _LOOKS)


def attached(
    segment: Segment,
    model: nn.Module,
    mask: Mask | None,
    tensors: Mapping[str, Tensor],
    structure: Callable[[], Structure] | None = None,
) -> Gates:
    """The gates of a segment on a model of its task: fresh, or with the stored `tensors`.

    Args:
        structure: called for the coupled channels of the task's network, where gates are on channels.
    """
    gating = segment.gates
    assert gating is not None
    of = scope_of_names(model, gating.scope)
    settings: dict[str, Any] = {"init": gating.init, "kind": gating.make_kind(), "seed": gating.seed}
    found: Gates
    if gating.structured:
        assert structure is not None
        found = attach_channels(model, structure(), of, **settings)
    else:
        found = attach(model, scope=of, within=mask, pattern=gating.pattern, **settings)
    if tensors:
        found.load_state_dict({**found.state_dict(), "round": int(tensors["round"]), "gates": _part(tensors, "s/")})
    return found


def next_round(
    segment: Segment, model: Mapping[str, Tensor], mask: Mask | None, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the gates of a further round begin with, from what an earlier one ended with. Pure function."""
    assert segment.gates is not None
    assert segment.gates.reset is not None
    found = attached(segment, rebuilt(segment.task, model), mask, tensors)
    found.next_round(reset=segment.gates.reset)
    return {
        "round": torch.tensor(found.round),
        **{f"s/{name}": s.detach() for name, s in found.named_parameters()},
    }


def scope_of_names(model: nn.Module, names: Sequence[str]) -> Scope:
    """The scope of named parameters; `ScopeError` for a name that the model lacks."""
    parameters = named_parameters(model)
    if unknown := [name for name in names if name not in parameters]:
        raise ScopeError(f"gates are asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
    total = sum(parameter.numel() for parameter in parameters.values())
    return Scope({name: tuple(parameters[name].shape) for name in names}, total)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
