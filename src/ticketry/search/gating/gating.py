"""Training with gates: a variant of training with a second set of parameters and a second optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.budgets.cost_model import Curve
from ticketry.choices import check_choices
from ticketry.core.gates import Balance, Charges, Gates, Kind, attach, by_epoch, by_step
from ticketry.core.gates.attach import LARGEST_INIT
from ticketry.core.gates.channel_gates import attach_channels
from ticketry.core.gates.kinds import KINDS, kind_of
from ticketry.core.gates.kinds.binary_concrete import BinaryConcrete
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.structure.coupling import Structure
from ticketry.core.structure.pattern import UNSTRUCTURED, Pattern
from ticketry.errors import ScopeError, TrainingError, UsageError
from ticketry.lab.training.loop import set_learning_rate
from ticketry.lab.training.optimizer import learning_rate, load_optimizer, make_optimizer, optimizer_tensors
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import part_of, rebuild_model
from ticketry.lab.training.variant import Effect, InTraining, Metrics, Surroundings, Variant
from ticketry.lab.training.variants import Penalty, task_structure
from ticketry.search.gating.objective import check_scores, divergence
from ticketry.search.gating.settings import Anneal, LearningRates, Objective, Reset
from ticketry.tasks.recipe import Optimizer, Recipe

_LOOKS = 100  # How often, in a whole schedule, the gates that are on are counted.
_BINS = 20
"""Of the histogram of gates in a record."""


@dataclass(frozen=True, kw_only=True)
class Gating(Variant):
    """Soft masks that a segment trains with its weights. Frozen and made of plain values: it is part of the key.

    The defaults are those of Savarese et al. (2020); see `core.gates`.
    """

    name = "gates"
    computes_removed = True
    scope: tuple[str, ...]
    """Names of the parameters that have gates."""
    kind: str = "continuous"
    """A name of `core.gates.KINDS`."""
    init: float = 0.0
    """s0, what every s begins with, and what those that are kept go back to at a further round."""
    penalty: float = 1e-8
    """lambda: coefficient of the sum of all gates in the loss."""
    final: float = 200.0
    """beta_T: the inverse temperature at the end of the schedule, for the kinds that have one."""
    anneal: Anneal = "step"
    """``step``: the temperature falls with every iteration (the paper); ``epoch``: with every epoch (the code)."""
    optimizer: Optimizer = "sgd"
    """sgd, adam or adamw, of the gates alone."""
    lr: float = 0.1
    """Of the gates, at its peak."""
    lr_schedule: LearningRates = "recipe"
    """``recipe``: rises and falls as that of the weights does (the code); ``constant``: stays."""
    momentum: float = 0.9
    """Of SGD; for Adam and AdamW it is beta1."""
    beta2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 0.0
    """Of the gates; it pulls them to the border between on and off, and the paper has none."""
    earlier: str | None = None
    """Digest of the stored gates of an earlier round, if they go on from there."""
    reset: Reset | None = None
    """How these begin again: see `Gates.next_round`."""
    seed: int = 0
    """Of the kinds that draw."""
    frozen: bool = False
    """Train the gates alone: weights and buffers stay as they start. The mode is eval, but norms are of the batch."""
    objective: Objective = "loss"
    """What falls: ``loss``, the task's; over frozen weights also ``reverse_kl`` or ``forward_kl``, a divergence of its
    outputs from those without gates, see `search.gating.objective`."""
    density: float | None = None
    """What the expected density is steered to by `core.gates.Balance`; None leaves it to the penalty."""
    temperature: float = BinaryConcrete.temperature
    """Of the draws of a kind that has one; the default stands for the kind's own."""
    structured: bool = False
    """One gate for each coupled channel that the parameters in scope make, see `core.gates.channel_gates`."""
    pattern: str = UNSTRUCTURED
    """Weights that share a gate, see `core.structure.pattern`."""
    prices: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    """Of each parameter densities and costs: the curves of `core.gates.Charges`. Without them all weights cost alike;
    with them `density` is the share of all charges."""

    def __post_init__(self) -> None:
        for name in ("init", "penalty", "final", "lr", "momentum", "beta2", "weight_decay", "temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 have one key
        check_choices(self, "gates: ")
        if not self.scope:
            raise UsageError("gates: the scope names no parameter")
        if not 0 <= self.penalty <= 1e6:
            raise UsageError(f"gates: the penalty is a number from 0 to 1e6, not {self.penalty}")
        if not -LARGEST_INIT <= self.init <= LARGEST_INIT:
            raise UsageError(f"gates: init is a number from {-LARGEST_INIT} to {LARGEST_INIT}, not {self.init}")
        if self.objective != "loss" and not self.frozen:
            raise UsageError(
                f"gates: the objective {self.objective} compares with the weights' own outputs: freeze them"
            )
        if self.density is not None and not 0 < self.density < 1:
            raise UsageError(f"gates: they are steered to a density above 0 and below 1, not {self.density}")
        if self.structured and (self.reset is not None or self.density is not None):
            raise UsageError("gates on channels have no further rounds (reset), and are steered to no density")
        if Pattern.parse(self.pattern).check_blocks("gates").blocks_of_rows and self.structured:
            raise UsageError(f"gates are on coupled channels (structured) or on blocks (pattern {self.pattern})")
        if self.prices and (self.structured or len(self.prices) != len(self.scope)):
            raise UsageError("gates: prices are of single weights or blocks, one curve for each parameter in scope")
        if (self.earlier is None) != (self.reset is None):
            raise UsageError("gates that go on from those of an earlier round say how they are reset, no others")
        # Where none is given, a kind has its own temperature.
        object.__setattr__(self, "temperature", float(getattr(self.make_kind(), "temperature", self.temperature)))
        self.recipe(Recipe())

    def make_kind(self) -> Kind:
        """The kind of gate, with its settings; `UsageError` for a temperature out of range."""
        own = self.temperature == BinaryConcrete.temperature
        return kind_of(self.kind, final=self.final, **({} if own else {"temperature": self.temperature}))

    def describe(self) -> dict[str, Any]:
        source = KINDS.digest_source(self.kind)  # a kind of one's own may change
        return super().describe() | ({"source": source} if source else {})

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Gating:
        given = {name: value for name, value in values.items() if name != "source"}  # which the kind has by itself
        prices = tuple((tuple(densities), tuple(costs)) for densities, costs in given.pop("prices", ()))
        return cls(**{**given, "scope": tuple(values["scope"]), "prices": prices})

    @property
    def several_ranks(self) -> bool:
        """Gates that are drawn, and what compares or normalises the outputs of one process, are of one process."""
        return not (self.make_kind().draws or self.frozen or self.structured)

    def blobs(self) -> tuple[str, ...]:
        return () if self.earlier is None else (self.earlier,)

    def conflict(self, other: Variant) -> str | None:
        if self.structured and other.masked_by() is not None:
            return "gates on channels are trained in a network that is whole: this segment has a mask"
        if other.whole_channels:
            return "networks with gates are trained whole: soft masks remove no channels before they end"
        if isinstance(other, Penalty):
            return "a penalty is on the weights of one network without gates, which have a penalty of their own"
        return None

    def effect(self, around: Surroundings) -> Effect:
        return GatesEffect(around, self)

    def first_state(self, around: Surroundings, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a further round: the gates that an earlier one ended with, reset."""
        if self.earlier is None:
            return {}
        assert self.reset is not None
        found = _gates_on(self, around, rebuild_model(around.task, model), around.store.get_tensors(self.earlier))
        found.next_round(reset=self.reset)
        return {
            "round": torch.tensor(found.round),
            **{f"s/{name}": s.detach() for name, s in found.named_parameters()},
        }

    def told_of_ticket(self) -> dict[str, Any]:
        return {} if self.density is not None else {"init": self.init, "penalty": self.penalty}

    def told_of_round(self, record: Mapping[str, Any]) -> dict[str, Any]:
        told = record["gating"]
        total = told.get("weights") or sum(told["histogram"])
        same = ("round", "kind", "init", "penalty", "density", "soft_density", "ties", "histogram")
        return {
            **{name: told[name] for name in same},
            "validation": record["metrics"]["validation"],
            "soft_validation": record["soft_metrics"]["validation"],
            "path": [(step, sum(counts) / total) for step, *counts in told["kept"]],
        }

    def afresh(self) -> Gating:
        return replace(self, earlier=None, reset=None)

    def decides_flops(self) -> str:
        return self.objective

    def decides_memory(self) -> dict[str, Any]:
        told = ("kind", "scope", "optimizer", "frozen", "objective", "structured", "pattern")
        switches = {"momentum": self.momentum, "penalty": self.penalty, "balanced": self.density}
        return {name: getattr(self, name) for name in told} | {name: bool(is_on) for name, is_on in switches.items()}

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe by which gates are trained beside weights that follow `recipe`."""
        flat = {"schedule": "constant", "warmup": "0it"} if self.lr_schedule == "constant" else {}
        own = ("optimizer", "lr", "momentum", "beta2", "nesterov", "weight_decay")
        return recipe.changed(**{name: getattr(self, name) for name in own}, **flat)

    def progress(self, step: int, *, total: int, per_epoch: int) -> float:
        """The share of a round of `total` iterations that is done before iteration `step`; 1 from its end on."""
        if step >= total:
            return 1.0
        if self.anneal == "step":
            return by_step(step, total)
        return by_epoch(step // per_epoch, -(-total // per_epoch))


def gating_of(segment: Segment) -> Gating:
    """The gates of a segment that has some."""
    found = segment.variant(Gating)
    assert found is not None
    return found


class GatesEffect(Effect):
    """Gates in training, with an optimiser of their own. Losses include their penalty; clipping is of weights alone.

    Over frozen weights nothing but the gates changes: no weight, no momentum, no statistic of batch norm. The network
    is in eval mode (no dropout), but batch norm normalises by the batch at hand: the running statistics are those of
    the dense network, by which the signal of a sparse one would fade from layer to layer.

    It carries ``s/name``, ``round``, ``optimizer/name/entry``, ``kept``, int64 [looks, parameters]: how many were on,
    some hundred times a schedule, and where gates are balanced ``multiplier``.
    """

    def __init__(self, around: Surroundings, gating: Gating) -> None:
        super().__init__(around)
        self._gating = gating

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        around, gating = self.around, self._gating
        self._training = training
        self.gates = _gates_on(gating, around, training.model, carried)
        self._recipe = gating.recipe(around.recipe)
        self._optimizer = make_optimizer(self._recipe, self.gates)
        load_optimizer(self._optimizer, self.gates, part_of(carried, "optimizer/"))
        self._look_every = max(1, around.total // _LOOKS)
        self._kept = [row.tolist() for row in carried.get("kept", torch.zeros(0, 0))]
        self._balance = None if gating.density is None else Balance(self.gates, gating.density)
        if self._balance:
            self._balance.multiplier = carried.get("multiplier")
        if gating.frozen:
            training.model.eval().requires_grad_(False)
        self._norms = [module for module in training.model.modules() if isinstance(module, _BatchNorm)]

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        self._anneal()
        self.gates.set_step(self._training.step)
        self._optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        gating = self._gating
        with self.gates.drawing(), self._statistics():
            loss = inner() if gating.objective == "loss" else self._divergence(batch)
        return loss + self.gates.penalty(gating.penalty) if gating.penalty else loss

    def _divergence(self, batch: Any) -> Tensor:
        """Of the gated network's outputs from those of the bare weights, both in the same mode."""
        session, model = self._training.session, self._training.model
        outputs, targets = session.outputs(model, batch)
        check_scores(self.around.task, outputs, targets)
        with torch.no_grad(), self.gates.lifted():
            bare, _ = session.outputs(model, batch, of="bare")
        return divergence(outputs, bare, reverse=self._gating.objective == "reverse_kl")

    def _statistics(self) -> contextlib.AbstractContextManager[None]:
        return batch_statistics(self._norms) if self._gating.frozen else contextlib.nullcontext()

    def after_backward(self) -> None:
        self._training.average_gradients(self.gates.parameters())

    def after_step(self) -> None:
        around, step = self.around, self._training.step
        if self._balance:
            self._balance.add_gradients()
        lr = learning_rate(self._recipe, step, total=around.total, per_epoch=around.per_epoch)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        if (step + 1) % self._look_every == 0:
            self._kept.append(list(self.gates.kept().values()))

    def stopped(self) -> None:
        self._anneal()

    def _anneal(self) -> None:
        around = self.around
        progress = self._gating.progress(self._training.step, total=around.total, per_epoch=around.per_epoch)
        try:
            self.gates.anneal(progress)
        except TrainingError:
            self._training.look_at_losses()  # where the loss was no number before, that is what to tell
            raise

    # -- what is stored ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        own = optimizer_tensors(self._optimizer, self.gates)
        found = {
            **{f"s/{name}": s.detach().to("cpu", copy=True) for name, s in self.gates.named_parameters()},
            "round": torch.tensor(self.gates.round),
            **{f"optimizer/{name}": value.clone() for name, value in own.items()},
            "kept": torch.tensor(self._kept, dtype=torch.int64).reshape(len(self._kept), len(self.gates.parameters())),
        }
        if self._balance and self._balance.multiplier is not None:
            found["multiplier"] = self._balance.multiplier.to("cpu", copy=True)
        return found

    def lasting(self, name: str) -> bool:
        return name == "round" or name.startswith("s/")

    def facts(self) -> dict[str, Any]:
        names = [name for name, _ in self.gates.named_parameters()]
        first, every = self.around.first, self._look_every
        looked = range((first // every + 1) * every, self._training.step + 1, every)
        return {
            "gating": {
                "kind": self._gating.kind,
                "init": self._gating.init,
                "penalty": self._gating.penalty,
                "steered": self._gating.density is not None,
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

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """With hard gates, which is what counts, and with soft ones beside."""
        with self.gates.hardened():
            hard = measure()
        return {"metrics": hard, "soft_metrics": measure()}

    def tensors(self) -> object:
        return list(self.gates.parameters())


def _gates_on(gating: Gating, around: Surroundings, model: nn.Module, tensors: Mapping[str, Tensor]) -> Gates:
    return attached(gating, model, around.mask, tensors, lambda: task_structure(around.task, around.course))


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


def attached(
    gating: Gating,
    model: nn.Module,
    mask: Mask | None,
    tensors: Mapping[str, Tensor],
    structure: Callable[[], Structure],
) -> Gates:
    """The gates of a segment on a model of its task: fresh, or with the stored `tensors`.

    Args:
        mask: within which they are.
        structure: called for the coupled channels of the task's network, where gates are on channels.
    """
    of = scope_of_names(model, gating.scope)
    settings: dict[str, Any] = {"init": gating.init, "kind": gating.make_kind(), "seed": gating.seed}
    found: Gates
    if gating.structured:
        found = attach_channels(model, structure(), of, **settings)
    else:
        curves, sizes = tuple(Curve(*each) for each in gating.prices), tuple(of.sizes.values())
        charges = Charges(curves, sizes) if curves else None
        found = attach(model, scope=of, within=mask, pattern=gating.pattern, charges=charges, **settings)
    if tensors:
        found.load_state_dict({**found.state_dict(), "round": int(tensors["round"]), "gates": part_of(tensors, "s/")})
    return found


def scope_of_names(model: nn.Module, names: Sequence[str]) -> Scope:
    """The scope of named parameters; `ScopeError` for a name that the model lacks."""
    parameters = named_parameters(model)
    if unknown := [name for name in names if name not in parameters]:
        raise ScopeError(f"gates are asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
    total = sum(parameter.numel() for parameter in parameters.values())
    return Scope({name: tuple(parameters[name].shape) for name in names}, total)
