"""Training with gates: every weight is multiplied by a trainable gate, and gates have their own optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.budgets.cost_model import Curve
from ticketry.budgets.pruner import allocate_budget
from ticketry.choices import check_choices
from ticketry.core.gates import Balance, Charges, Gates, Kind, attach, by_epoch, by_step
from ticketry.core.gates.attach import LARGEST_INIT, attach_channels
from ticketry.core.gates.charges import permitted_gate_cost_share
from ticketry.core.gates.kinds import KINDS, BinaryConcrete, make_kind
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.structure.channel_masks import prune_channels_by_scores
from ticketry.core.structure.coupling import Structure
from ticketry.core.structure.pattern import UNSTRUCTURED, Pattern
from ticketry.errors import LayerCollapseError, ScopeError, TaskError, TrainingError, UsageError
from ticketry.lab.lab import Lab
from ticketry.lab.masks import load_weight_prices, prune_to_cost_share
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.loop import set_learning_rate
from ticketry.lab.training.segment import Result, Segment
from ticketry.lab.training.state import (
    copy_state,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    rebuild_model,
    select_prefix,
)
from ticketry.lab.training.variant import Effect, InTraining, Metrics, Surroundings, Variant
from ticketry.lab.training.variants import Penalty, trace_task_structure
from ticketry.search.common.settings import PruningSettings
from ticketry.search.gating import Anneal, LearningRates, Objective, Reset
from ticketry.tasks.recipe import Optimizer, Recipe
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    from ticketry.search.common.method import Replicate


_COUNTS = 100
"""Number of times in a whole schedule at which the open gates are counted."""
_BINS = 20
"""Number of bins of the histogram of gate values in a record."""
_FEW = 8
"""Number of examples that `require_classification` runs the network on."""


@dataclass(frozen=True, kw_only=True)
class Gating(Variant):
    """Variant of training in which gates (a soft mask) are trained with the weights, see `core.gates`.

    The defaults are those of Savarese et al. (2020).
    """

    name = "gates"
    computes_removed = True
    scope: tuple[str, ...]
    """Names of the parameters that have gates."""
    kind: str = "continuous"
    """Kind of gate: a name in the registry `core.gates.KINDS`."""
    init: float = 0.0
    """s0: the initial value of every gate parameter s. In a further round, gates that are on are reset to s0."""
    penalty: float = 1e-8
    """lambda: coefficient of the sum of all gates in the loss."""
    final: float = 200.0
    """beta_T: the inverse temperature at the end of the schedule, for kinds of gates with a temperature."""
    anneal: Anneal = "step"
    """When the temperature falls: ``step``, with every iteration (the paper), or ``epoch``, with every epoch (the
    code)."""
    optimizer: Optimizer = "sgd"
    """Optimiser of the gates: sgd, adam or adamw."""
    lr: float = 0.1
    """Peak learning rate of the gates."""
    lr_schedule: LearningRates = "recipe"
    """Schedule of the gates' learning rate: ``recipe``, that of the weights (the code), or ``constant``."""
    momentum: float = 0.9
    """Momentum of SGD; beta1 of Adam and AdamW."""
    beta2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 0.0
    """Weight decay of the gates, which pulls them to the border between on and off; the paper has no such decay."""
    earlier: str | None = None
    """Digest of the stored gates of an earlier round, with which training continues; None for new gates."""
    reset: Reset | None = None
    """How gates of an earlier round are reset, see `Gates.next_round`."""
    seed: int = 0
    """Seed of the random draws, for kinds of gates that are drawn at random."""
    frozen: bool = False
    """Whether only gates are trained while weights and buffers stay fixed. The network is then in eval mode, but its
    norms use batch statistics."""
    objective: Objective = "loss"
    """Objective: ``loss`` (the task's); with `frozen` also ``reverse_kl`` or ``forward_kl``, the divergence between the
    outputs with and without gates, see `mean_kl_divergence`."""
    density: float | None = None
    """Expected density to which `core.gates.Balance` steers the gates; with None only the penalty affects the
    density."""
    temperature: float = BinaryConcrete.temperature
    """Temperature of the random draws, for kinds of gates that have one; by default the kind's own."""
    structured: bool = False
    """Whether each coupled channel has one gate instead of each weight, see `core.gates.attach.attach_channels`."""
    pattern: str = UNSTRUCTURED
    """Pattern of the blocks of weights that share a gate, see `core.structure.pattern`."""
    prices: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    """For each parameter, a cost curve (densities, costs), see `core.gates.Charges`. If given, `density` is a share of
    the total cost; if empty, all weights cost the same."""

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
        if Pattern.parse(self.pattern).require_blocks("gates").blocks_of_rows and self.structured:
            raise UsageError(f"gates are on coupled channels (structured) or on blocks (pattern {self.pattern})")
        if self.prices and (self.structured or len(self.prices) != len(self.scope)):
            raise UsageError("gates: prices are of single weights or blocks, one curve for each parameter in scope")
        if (self.earlier is None) != (self.reset is None):
            raise UsageError("gates need reset if they continue from an earlier round, and only then")
        # Without a temperature a kind has its own.
        object.__setattr__(self, "temperature", float(getattr(self.make_kind(), "temperature", self.temperature)))
        self.gate_recipe(Recipe())

    def make_kind(self) -> Kind:
        """Return an instance of `kind` with these settings; raise `UsageError` if `temperature` is invalid."""
        own = self.temperature == BinaryConcrete.temperature
        return make_kind(self.kind, final=self.final, **({} if own else {"temperature": self.temperature}))

    def describe(self) -> dict[str, Any]:
        source = KINDS.digest_source(self.kind)  # a user's kind may change
        return super().describe() | ({"source": source} if source else {})

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Gating:
        given = {name: value for name, value in values.items() if name != "source"}  # the kind knows it
        prices = tuple((tuple(densities), tuple(costs)) for densities, costs in given.pop("prices", ()))
        return cls(**{**given, "scope": tuple(values["scope"]), "prices": prices})

    @property
    def several_ranks(self) -> bool:
        """Whether several processes can train together; not with random gates, frozen weights or gates on channels."""
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
        """Return the gates of the earlier round after their reset; empty if there was no earlier round."""
        if self.earlier is None:
            return {}
        assert self.reset is not None
        found = _attach_stored_gates(
            self, around, rebuild_model(around.task, model), around.store.get_tensors(self.earlier)
        )
        found.next_round(reset=self.reset)
        return {"round": torch.tensor(found.round), **{f"s/{name}": s.detach() for name, s in found.named_parameters()}}

    def ticket_fields(self) -> dict[str, Any]:
        return {} if self.density is not None else {"init": self.init, "penalty": self.penalty}

    def round_fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        told = record["gating"]
        total = told.get("weights") or sum(told["histogram"])
        same = ("round", "kind", "init", "penalty", "density", "soft_density", "ties", "histogram")
        return {
            **{name: told[name] for name in same},
            "validation": record["metrics"]["validation"],
            "soft_validation": record["soft_metrics"]["validation"],
            "path": [(step, sum(counts) / total) for step, *counts in told["kept"]],
        }

    def without_history(self) -> Gating:
        return replace(self, earlier=None, reset=None)

    def flops_key(self) -> str:
        return self.objective

    def memory_key(self) -> dict[str, Any]:
        told = ("kind", "scope", "optimizer", "frozen", "objective", "structured", "pattern")
        switches = {"momentum": self.momentum, "penalty": self.penalty, "balanced": self.density}
        return {name: getattr(self, name) for name in told} | {name: bool(is_on) for name, is_on in switches.items()}

    def gate_recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe that trains the gates: the weights' `recipe` with the gates' optimiser settings."""
        flat = {"schedule": "constant", "warmup": "0it"} if self.lr_schedule == "constant" else {}
        own = ("optimizer", "lr", "momentum", "beta2", "nesterov", "weight_decay")
        return recipe.changed(**{name: getattr(self, name) for name in own}, **flat)

    def annealing_progress(self, step: int, *, total: int, per_epoch: int) -> float:
        """Return the share, 0 … 1, of the temperature's annealing that is done before iteration `step` of `total`."""
        if step >= total:
            return 1.0
        if self.anneal == "step":
            return by_step(step, total)
        return by_epoch(step // per_epoch, -(-total // per_epoch))


def get_gating(segment: Segment) -> Gating:
    """Return the `Gating` variant of `segment`, which must be a training with gates."""
    found = segment.variant(Gating)
    assert found is not None
    return found


class GatesEffect(Effect):
    """Effect of `Gating` on a training: attaches the gates, adds their penalty to the loss, and steps their optimiser.

    Gradient clipping covers only weights. If weights are frozen, only gates change. The network is then in eval mode
    (no dropout), but batch norm uses batch statistics: with the dense network's running statistics, the signal of a
    sparse network would fade from layer to layer.

    The stored state has the entries ``s/name`` (gate logits), ``round``, ``optimizer/name/entry``, ``kept`` (number of
    open gates at about a hundred steps, int64 [counts, parameters]), and, if gates are steered to a density,
    ``multiplier`` (of `core.gates.Balance`).
    """

    def __init__(self, around: Surroundings, gating: Gating) -> None:
        super().__init__(around)
        self._gating = gating

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        around, gating = self.around, self._gating
        self._training = training
        self.gates = _attach_stored_gates(gating, around, training.model, carried)
        self._recipe = gating.gate_recipe(around.recipe)
        self._optimizer = make_optimizer(self._recipe, self.gates)
        load_optimizer(self._optimizer, self.gates, select_prefix(carried, "optimizer/"))
        self._count_every = max(1, around.total // _COUNTS)
        self._kept = [row.tolist() for row in carried.get("kept", torch.zeros(0, 0))]
        self._balance = None if gating.density is None else Balance(self.gates, gating.density)
        if self._balance:
            self._balance.multiplier = carried.get("multiplier")
        if gating.frozen:
            training.model.eval().requires_grad_(False)
        self._norms = [module for module in training.model.modules() if isinstance(module, _BatchNorm)]

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        self._set_temperature()
        self.gates.set_step(self._training.step)
        self._optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        gating, session, model = self._gating, self._training.session, self._training.model
        with self.gates.drawing(), batch_statistics(self._norms if gating.frozen else ()):
            if gating.objective == "loss":
                loss = inner()
            else:
                outputs, targets = session.outputs(model, batch)
                require_class_scores(self.around.task, outputs, targets)
                with torch.no_grad(), self.gates.lifted():
                    bare, _ = session.outputs(model, batch, of="bare")
                loss = mean_kl_divergence(outputs, bare, reverse=gating.objective == "reverse_kl")
        return loss + self.gates.penalty(gating.penalty) if gating.penalty else loss

    def after_backward(self) -> None:
        self._training.average_gradients(self.gates.parameters())

    def after_step(self) -> None:
        around, step = self.around, self._training.step
        if self._balance:
            self._balance.add_gradients()
        lr = learning_rate(self._recipe, step, total=around.total, per_epoch=around.per_epoch)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        if (step + 1) % self._count_every == 0:
            self._kept.append(list(self.gates.kept().values()))

    def stopped(self) -> None:
        self._set_temperature()

    def _set_temperature(self) -> None:
        around = self.around
        progress = self._gating.annealing_progress(self._training.step, total=around.total, per_epoch=around.per_epoch)
        try:
            self.gates.anneal(progress)
        except TrainingError:
            self._training.check_losses()  # raises if the loss was not finite before
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
        first, every = self.around.first, self._count_every
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
                # `kept` counts weights, and the histogram gates, which are fewer for blocks.
                **({"weights": self.gates.weights} if self._gating.pattern != UNSTRUCTURED else {}),
            }
        }

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """Measure with gates rounded to on or off (``metrics``), and again with soft gates (``soft_metrics``)."""
        with self.gates.hardened():
            hard = measure()
        return {"metrics": hard, "soft_metrics": measure()}

    def tensors(self) -> object:
        return list(self.gates.parameters())


def _attach_stored_gates(
    gating: Gating, around: Surroundings, model: nn.Module, tensors: Mapping[str, Tensor]
) -> Gates:
    return attach_gates(gating, model, around.mask, tensors, lambda: trace_task_structure(around.task, around.course))


@contextlib.contextmanager
def batch_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms in eval mode use batch statistics inside a with block; running statistics stay unchanged."""
    statistics = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in statistics:
            norm.running_mean, norm.running_var = mean, variance


def attach_gates(
    gating: Gating,
    model: nn.Module,
    mask: Mask | None,
    tensors: Mapping[str, Tensor],
    structure: Callable[[], Structure],
) -> Gates:
    """Attach gates to a model; values come from the stored `tensors`, or are initial ones if `tensors` is empty.

    Args:
        mask: if given, only weights that this mask retains get gates.
        structure: function that returns the network's coupled channels; called only for gates on channels.
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
        found.load_state_dict(
            {**found.state_dict(), "round": int(tensors["round"]), "gates": select_prefix(tensors, "s/")}
        )
    return found


def scope_of_names(model: nn.Module, names: Sequence[str]) -> Scope:
    """Return the scope of the parameters `names`; raise `ScopeError` if the model lacks one of them."""
    parameters = named_parameters(model)
    if unknown := [name for name in names if name not in parameters]:
        raise ScopeError(f"gates are asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
    total = sum(parameter.numel() for parameter in parameters.values())
    return Scope({name: tuple(parameters[name].shape) for name in names}, total)


# -- objectives over frozen weights: outputs like those without gates --------------------------------------------------


def mean_kl_divergence(outputs: Tensor, ungated_outputs: Tensor, *, reverse: bool) -> Tensor:
    """Return the mean Kullback-Leibler divergence, in nats, between two batches of logits [n, classes, ...].

    Let p be the class probabilities of `outputs`, and q those of `ungated_outputs` (the network without gates). If
    `reverse`, return KL(p, q) = sum p log(p / q), as in CTS-KL of Arora & Teuscher (2025); this is large where only the
    network with gates is confident. Else return KL(q, p), as in distillation (Hinton et al. 2015); this is large where
    the network with gates misses a class.
    """
    p, q = F.log_softmax(outputs, 1), F.log_softmax(ungated_outputs, 1)
    one, other = (p, q) if reverse else (q, p)
    return (one.exp() * (one - other)).sum(1).mean()


def require_class_scores(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Raise `TaskError` unless outputs are class scores [n, classes, ...] for integer targets [n, ...]."""
    scores = outputs.dim() == targets.dim() + 1 and outputs.shape[2:] == targets.shape[1:] and outputs.shape[1] > 1
    if not scores or targets.is_floating_point():
        raise TaskError(
            f"a Kullback-Leibler divergence needs a score for each class, and the task {task.name!r} has outputs"
            f" {list(outputs.shape)} for {targets.dtype} targets {list(targets.shape)}: train the gates for the task's"
            " own loss (--objective loss)"
        )


def require_classification(lab: Lab, task: Task) -> None:
    """Run a new network of `task` on a few examples; raise `TaskError` unless it has class scores (cached)."""
    key = digest_of({"scores": 1, "task": dict(task.key())})
    if lab.store.load_memo("objectives", key) is not None:
        return
    arithmetic = lab.arithmetic(task)
    model = arithmetic.place(lab.model(task).eval())
    course = lab.course(task).few(_FEW)
    batch = min(_FEW, course.sizes()["train"])
    session = course.session(task.recipe.changed(batch=batch, augment=()), 0, arithmetic)
    with torch.no_grad(), contextlib.closing(session.batches(range(1))) as batches:
        outputs, targets = session.outputs(model, next(batches))
    require_class_scores(task, outputs, targets)
    lab.store.put_memo("objectives", key, {"scores": True})


def mask_of_open_gates(lab: Lab, result: Result) -> str:
    """Store the mask that retains the weights whose gates are open (logit above 0); return its digest (cached)."""

    def compute_mask() -> Mask:
        try:
            return load_gates(lab, result).harden()
        except LayerCollapseError as error:
            raise LayerCollapseError(f"{error}. {_describe_when_gates_closed(result)}") from None

    return _compute_mask_once(lab, result, {}, compute_mask)


def mask_of_largest_gates(lab: Lab, result: Result, density: float, collapse: str = "raise") -> str:
    """Store the mask of a density that retains the largest gate logits; return the mask's digest (cached).

    Weights with equal logits are retained in the order of their positions. If a parameter would lose all weights,
    `collapse` says whether to ``raise`` an error or to ``keep`` one weight.
    """

    def compute_mask() -> Mask:
        gates = load_gates(lab, result)
        try:
            return gates.allocate(density, collapse=collapse)
        except LayerCollapseError as error:
            raise LayerCollapseError(
                f"{error.what} after {result.segment.steps} steps of mask training",
                "choose a higher density, spare the layer, train masks for longer",
                keep="keep one weight of it",
                by="collapse keep",
            ) from None

    return _compute_mask_once(lab, result, {"density": density, "collapse": collapse}, compute_mask)


def mask_of_largest_channel_gates(
    lab: Lab, result: Result, density: float, *, keep_at_least: int = 1, multiple: int = 1
) -> str:
    """Store the mask near a density that retains the channels with the largest gate logits; return its digest (cached).

    Each group retains at least `keep_at_least` channels, and if it loses any, a multiple of `multiple`.
    """
    task, gating = result.segment.task, get_gating(result.segment)

    def compute_mask() -> Mask:
        model = rebuild_model(task, lab.state(result))
        scores = [s.detach() for s in load_gates(lab, result, model).parameters()]
        chosen = scope_of_names(model, gating.scope)
        return prune_channels_by_scores(
            model, lab.structure(task), scores, density, scope=chosen, keep_at_least=keep_at_least, multiple=multiple
        )

    described = {"density": density, "structured": True, "keep_at_least": keep_at_least, "multiple": multiple}
    return _compute_mask_once(lab, result, described, compute_mask)


def _compute_mask_once(lab: Lab, result: Result, described: Mapping[str, Any], compute: Callable[[], Mask]) -> str:
    return lab.load_or_compute_mask(
        {"gates": result.variants[Gating.name], "of": result.segment.key, **described}, compute
    )


def weights_times_hard_gates(lab: Lab, result: Result) -> str:
    """Store the network's state after multiplying weights by gates rounded to 0 or 1; return the state's digest."""
    model = rebuild_model(result.segment.task, lab.state(result))
    gates = load_gates(lab, result, model)
    gates.detach(apply=True)
    return lab.store.put_tensors(copy_state(model))


def load_gates(lab: Lab, result: Result, model: nn.Module | None = None) -> Gates:
    """Attach a result's trained gates to `model` (by default a new model with the result's weights); return them."""
    segment, gating = result.segment, get_gating(result.segment)
    model = model or rebuild_model(segment.task, lab.state(result))
    mask = lab.store.get_mask(segment.mask) if segment.mask else None
    tensors = lab.store.get_tensors(result.variants[Gating.name])
    gates = attach_gates(gating, model, mask, tensors, lambda: lab.structure(segment.task))
    gates.anneal(gating.annealing_progress(segment.last, total=segment.total, per_epoch=segment.per_epoch))
    return gates


def _describe_when_gates_closed(result: Result) -> str:
    """Describe, for each parameter without open gates, from which recorded step on all its gates were closed."""
    segment, record = result.segment, result.record["gating"]
    parts = []
    for column, name in enumerate(record["names"], start=1):
        counts = [(row[0], row[column]) for row in record["kept"]]
        if not counts or counts[-1][1]:
            continue
        alive = [step for step, count in counts if count]
        since = next(step for step, _ in counts if not alive or step > alive[-1])
        parts.append(
            f"{name!r} has been empty from step {since} of {segment.total} (epoch {since / segment.per_epoch:.2f})"
            f" of round {record['round']} on"
        )
    return "; ".join(parts)


# -- under a budget ----------------------------------------------------------------------------------------------------


def gate_prices(replicate: Replicate, settings: PruningSettings, scope: Scope) -> dict[str, Any]:
    """Return the argument `prices` of `Gating` as {name: value}; empty if all gates have the same penalty."""
    if not settings.budget:
        return {}
    gate_target_and_initial_density(replicate, settings, scope, min(settings.budget.shares))
    if settings.unweighed:
        return {}
    curves = _make_gate_charges(replicate, settings, scope).curves
    return {"prices": tuple((curve.densities, curve.costs) for curve in curves)}


def gate_target_and_initial_density(
    replicate: Replicate, settings: PruningSettings, scope: Scope, share: float
) -> tuple[float, float]:
    """Return (target to which gates are steered, initial expected density of every layer).

    Without a budget both are the density `share`. With a budget the target is a share of the gates' total cost.
    """
    if not settings.budget:
        return share, share
    prices = load_weight_prices(replicate.lab, replicate.task, scope, settings.budget.cache_key)
    left = permitted_gate_cost_share(prices, scope.sizes, share)
    density = _make_gate_charges(replicate, settings, scope).density_for(left)
    return density if settings.unweighed else left, density


def mask_within_budget(
    lab: Lab, result: Result, settings: PruningSettings, share: float, collapse: str = "raise"
) -> str:
    """Store the mask within a cost budget that retains the largest gate logits; return the mask's digest (cached)."""
    terms, task, least = settings.budget_cache_key, result.segment.task, int(collapse == "keep")

    def compute_mask() -> Mask:
        scores = load_gates(lab, result).by_weight()
        prices = load_weight_prices(lab, task, scores, terms)

        def allocate(cost_share: float) -> Mask:
            return allocate_budget(scores, prices, cost_share, weighed=False, keep_at_least=least)

        try:
            return prune_to_cost_share(lab, task, prices, terms, share, allocate)
        except LayerCollapseError as error:
            where = f"{settings.describe_target(share)}, of the gates after {result.segment.steps} steps"
            raise error.with_keep_argument("collapse=keep").with_prefix(where) from None

    return _compute_mask_once(
        lab, result, {"budget": {"of": terms, "share": share}, "collapse": collapse}, compute_mask
    )


def _make_gate_charges(replicate: Replicate, settings: PruningSettings, scope: Scope) -> Charges:
    return Charges.by(load_weight_prices(replicate.lab, replicate.task, scope, settings.budget_cache_key), scope.sizes)
