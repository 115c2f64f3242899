"""Gates on a model's weights: their logits s, penalty and temperature, and the mask that they define."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.choices import describe_name_difference
from ticketry.core.allocate import allocate_for_gates
from ticketry.core.computed_weights import check_computed_weights_finite, computed_weights
from ticketry.core.gates.charges import Charges, penalty_of_open_gates
from ticketry.core.gates.kinds import Kind, Moment
from ticketry.core.gates.parameter_swap import ParameterSwap, find_parameter_locations
from ticketry.core.gates.product import apply_gate
from ticketry.core.mask import Mask
from ticketry.core.structure.pattern import check_collapse
from ticketry.errors import LayerCollapseError, MaskError, TrainingError, UsageError
from ticketry_engine.support.seeds import generator
from ticketry_engine.support.training_hooks import Stepping


def create_logits(parameter: nn.Parameter, init: float) -> nn.Parameter:
    """Create the trainable logits of a parameter's gates, in float32 or wider, so that small steps change them."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return nn.Parameter(torch.full_like(parameter, init, dtype=dtype, requires_grad=False))


@contextmanager
def temporarily_set_flag(thing: object, flag: str) -> Iterator[None]:
    """Set the attribute `flag` of `thing` to True within the block, and restore its value afterwards."""
    before = getattr(thing, flag)
    setattr(thing, flag, True)
    try:
        yield
    finally:
        setattr(thing, flag, before)


@dataclass(frozen=True)
class Histogram:
    """Numbers of gates, counted by how far they are open: from 0 (off) to 1.

    Examples:
        >>> gates = tk.gates.attach(nn.Linear(4, 3), init=2.0)
        >>> histogram = gates.histogram(bins=4)
        >>> histogram.edges, histogram.counts, histogram.total
        ((0.0, 0.25, 0.5, 0.75, 1.0), {'weight': (0, 0, 0, 12)}, (0, 0, 0, 12))
    """

    edges: tuple[float, ...]
    """Edges of the n bins: n + 1 ascending numbers from 0 to 1. A bin includes its lower edge, the last also its
    upper edge.
    """
    counts: Mapping[str, tuple[int, ...]]
    """The number of gates in each of the n bins, by parameter name."""

    @property
    def total(self) -> tuple[int, ...]:
        """The number of gates in each bin, over all parameters."""
        return tuple(map(sum, zip(*self.counts.values(), strict=True)))


RESETS = ("paper", "code")


class Gates:
    """Trainable gates on the weights of a model, created by `attach`.

    Examples:
        >>> gates = tk.gates.attach(nn.Linear(4, 3), init=2.0)
        >>> name, s = gates.named_parameters()[0]
        >>> name, s.shape, gates.weights
        ('weight', torch.Size([3, 4]), 12)
        >>> s.data[0, 0], s.data[0, 1] = -1.0, 0.0  # training would do it
        >>> gates.kept(), gates.ties(), gates.density() == 10 / 12
        ({'weight': 10}, {'weight': 1}, True)
        >>> gates.harden()["weight"][0], gates.allocate(0.5).kept
        (tensor([False, False,  True,  True]), 6)
        >>> gates.anneal(0.5)
        >>> gates.progress, round(gates.beta, 2)
        (0.5, 14.14)
        >>> gates.next_round()
        >>> gates.by_weight()["weight"][0, :2]
        tensor([-200.,    0.])
        >>> gates.detach(apply=True)
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        kind: Kind,
        init: float,
        within: Mask | None,
        seed: int,
    ) -> None:
        self.kind = kind
        self.init = init
        """Initial value s0 of every logit."""
        self.seed = seed
        self.round = 0
        """Number of completed rounds, see `next_round`."""
        self._model = model
        created = self._create_logits(parameters)
        self._names, self._logits = tuple(created), list(created.values())
        # The mask as 0 and 1, with the dtype, memory layout and device of the logits.
        self._kept = [
            None if within is None else torch.empty_like(s, requires_grad=False).copy_(within[name])
            for name, s in self.named_parameters()
        ]
        self._hard = self._lifted = self._drawing = False
        self._checked = -1  # per cent of progress at which all s were last checked for NaN
        self._set_progress(0.0)
        self._step = 0
        self._drawn_at: tuple[int, ...] | None = None
        # Sums of how far gates are open, one per parameter, with the state of the gates for which they were computed.
        self._sums: tuple[list[Tensor], Moment, tuple[int, ...]] | None = None
        self.charges: Charges | None = None  # of the penalty; None: all weights cost the same
        self._updates = 0
        own = weakref.ref(self)

        def count_step(optimizer: Optimizer, *_: object) -> None:
            if (gates := own()) is not None:
                mine = {id(logits) for logits in gates._logits}
                updated = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
                gates._updates += any(parameter in mine for parameter in updated)

        weakref.finalize(self, Stepping(after=count_step).remove)
        self._swap: ParameterSwap | None = ParameterSwap(
            model, find_parameter_locations(model, parameters), self._apply_gates
        )

    # -- to train --------------------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """Return the logits, one trainable number per gate, for an optimiser.

        Each tensor of logits has the shape and memory layout of its weight, in float32 or wider. Do not use weight
        decay: it would pull the logits towards 0, the threshold between on and off.
        """
        return list(self._logits)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return pairs (name of the weight, logits of its gates), in the order of the scope."""
        return list(zip(self._names, self._logits, strict=True))

    _sizes: list[Tensor] | None = None
    """Number of weights of each gate: a tensor for each parameter, shaped like its logits; None: each gate has one."""

    @property
    def weights(self) -> int:
        """Number of weights that have gates."""
        return self._gate_count if self._sizes is None else sum(int(sizes.double().sum()) for sizes in self._sizes)

    @property
    def beta(self) -> float:
        """Current inverse temperature, the factor of the logits; 1 for kinds of gates that do not change it."""
        return self._moment.beta

    @property
    def progress(self) -> float:
        """Share (0 to 1) of the current round of training that is done, as last passed to `anneal`."""
        return self._progress

    def penalty(self, coefficient: float) -> Tensor:
        """Return the penalty: `coefficient` times the sum, over all weights, of how far their gates are open.

        Add this scalar to the loss. It grows with the size of the model; papers use coefficients of 1e-8 (Savarese et
        al. 2020) and 0.1 / number of examples (Louizos et al. 2018). With `charges`, the sum is of the costs of open
        gates. If the last forward pass has already computed the sum, it is reused.
        """
        sums, self._sums = self._sums, None
        if sums and torch.is_grad_enabled() and sums[1:] == (self._moment, self._logit_versions):
            totals = sums[0]
        else:
            totals = [
                self._multiply_by_gate_size(value, number).sum()
                for number, value in enumerate(self._compute_openness())
            ]
        return penalty_of_open_gates(totals, self.charges, coefficient)

    def anneal(self, progress: float) -> None:
        """Set the temperature of the gates for `progress`, the share (0 to 1) of this round's training that is done.

        `by_step` and `by_epoch` compute this share. Each time it reaches a further per cent, logits are checked for
        NaN.

        Raises:
            UsageError: for a progress out of range.
            TrainingError: if logits are NaN; the message names the parameter.
        """
        if self._swap:
            self._swap.clean_up_interrupted_call()
        self._progress, self._moment = progress, Moment(self.init, self.kind.inverse_temperature(progress))
        if int(100 * progress) != self._checked:
            self._check_no_nan()
            self._checked = int(100 * progress)

    def set_step(self, step: int) -> None:
        """Set the step number: the next random gates depend only on the seed, this number and the parameter.

        An ordinary training loop need not call this: the step number increases whenever the logits have changed. Raises
        `UsageError` for a number below 0.
        """
        if step < 0:
            raise UsageError(f"a step is a number from 0 on, not {step!r}")
        self._step, self._drawn_at = step, None

    @property
    def step(self) -> int:
        """Step number whose random draws the next forward pass will use."""
        return self._step + (self._drawn_at is not None and self._drawn_at != self._logit_versions)

    # -- soft and hard ---------------------------------------------------------------------------------------------

    def hard(self, on: bool = True) -> None:
        """Switch hard gates on or off, for training and evaluation mode; with hard gates, logits get no gradient.

        Hard gates remove exactly the weights that the mask removes. Otherwise training uses soft or random gates, and
        each kind defines the gates of evaluation mode. With `weight_norm`, which divides by the norm of a row, calling
        the model raises `MaskError` if gates remove a whole row.
        """
        self._hard = on

    def hardened(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, use hard gates: 0 for gates that are off, and without gradients; see `hard`."""
        return temporarily_set_flag(self, "_hard")

    def lifted(self) -> contextlib.AbstractContextManager[None]:
        """Disable the gates within the block: the model computes with its ungated weights, for example as a teacher."""
        return temporarily_set_flag(self, "_lifted")

    def drawing(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, let a model in evaluation mode use the gates of training mode, which may be random."""
        return temporarily_set_flag(self, "_drawing")

    def harden(self, *, collapse: str = "raise") -> Mask:
        """Return the mask of the weights whose gates are on, that is, whose logits exceed `Kind.threshold` (mostly 0).

        Args:
            collapse: what to do if no gate of a parameter is on: ``raise`` an error, or ``keep`` the weight with the
                largest logit.

        Raises:
            LayerCollapseError: if no gate of a parameter is on and `collapse` is ``raise``.
            TrainingError: if logits are NaN; the message names the parameter.
        """
        self._check_no_nan()
        check_collapse(collapse)
        on = {}
        for (name, s), mask in zip(self.named_parameters(), self._kept, strict=True):
            within = torch.ones_like(s, dtype=torch.bool) if mask is None else mask
            on[name] = ((s.detach() > self.kind.threshold) & (within != 0)).cpu().contiguous()
            if collapse == "keep" and bool(within.any()) and not bool(on[name].any()):
                best = s.detach().masked_fill(within == 0, -torch.inf).flatten().argmax()
                on[name].view(-1)[best] = True
        if empty := [name for name, mask in on.items() if mask.numel() and not bool(mask.any())]:
            raise LayerCollapseError(
                f"no gate of {', '.join(map(repr, empty))} is on (layer collapse) at progress {self.progress:g},"
                f" inverse temperature {self.beta:g}, round {self.round}: choose a larger init (s0), a smaller penalty,"
                " spare the layer, or keep one weight of it (collapse='keep')"
            )
        return Mask(on)

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """Return the mask that retains the share `density` of the weights, those with the largest logits.

        The errors are those of `tk.allocate`. If a layer would be left empty, the `collapse` value ``raise`` raises an
        error, and ``keep`` retains the layer's best weight.
        """
        return allocate_for_gates(self.by_weight(), density, within=self._initial_mask(), collapse=collapse)

    def _initial_mask(self) -> Mask | None:
        """Return the mask that was passed to `attach` as `within`; None without one."""
        kept = {name: mask != 0 for name, mask in zip(self._names, self._kept, strict=True) if mask is not None}
        return Mask(kept) if kept else None

    def by_weight(self) -> dict[str, Tensor]:
        """Return the logit of each weight's gate, in the weight's shape, by parameter name."""
        return {name: s.detach() for name, s in self.named_parameters()}

    def ties(self) -> dict[str, int]:
        """Return the number of gates exactly at the threshold, by parameter name; `harden` turns them off."""
        at = self.kind.threshold
        return {name: int((s == at).sum()) for name, s in zip(self._names, self._retained_logits(), strict=True)}

    def kept(self) -> dict[str, int]:
        """Return the number of weights whose gates are on, by parameter name."""
        found = {}
        for number, (name, logits) in enumerate(self.named_parameters()):
            on, kept = logits.detach() > self.kind.threshold, self._kept[number]
            found[name] = int(
                self._multiply_by_gate_size((on if kept is None else on & (kept != 0)).double(), number).sum()
            )
        return found

    def density(self) -> float:
        """Return the fraction of weights whose gates are on: the density of the mask that `harden` returns."""
        return sum(self.kept().values()) / self._total

    @torch.no_grad()
    def soft_density(self) -> float:
        """Return how far gates are open on average; random gates count by their probability of being open."""
        opened = enumerate(self._compute_openness())
        return (
            sum(float(self._multiply_by_gate_size(value.double(), number).sum()) for number, value in opened)
            / self._total
        )

    @torch.no_grad()
    def histogram(self, bins: int = 50) -> Histogram:
        """Return a histogram, with `bins` equal bins, of how far gates are open; gates outside `within` are left out.

        Raises:
            UsageError: for less than one bin.
        """
        if bins < 1:
            raise UsageError(f"a histogram has at least one bin, not {bins!r}")
        counts = {}
        for name, logits in zip(self._names, self._retained_logits(), strict=True):
            opened = self.kind.open(logits, self._moment).double().cpu()
            counts[name] = tuple(int(count) for count in torch.histc(opened, bins, 0, 1))
        return Histogram(tuple(edge / bins for edge in range(bins + 1)), counts)

    # -- rounds and the end ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def next_round(self, *, reset: str = "paper", optimizer: Optimizer | None = None) -> None:
        """Start the next round of a search: reset the inverse temperature to 1, and lower logits s above s0 to s0.

        Here, s0 is the initial logit. Gates that are off stay off.

        Args:
            reset: ``paper`` sets s to min(beta_T s, s0), where beta_T is the inverse temperature at the end of a round
                (Savarese et al. 2020, algorithm 2). ``code`` sets s to min(s, s0), as the paper's official code does.
            optimizer: the optimiser of the gates; its state for the gates, such as momentum, is cleared. None: no state
                is cleared, as in the official code.

        Raises:
            UsageError: for an unknown reset, and for kinds of gates without rounds.
            TrainingError: if logits are NaN; the message names the parameter.
        """
        if not self.kind.rounds:
            raise UsageError(f"gates of kind {self.kind.name!r} have no rule for a further round")
        if reset not in RESETS:
            raise UsageError(f"reset is {' or '.join(RESETS)}, not {reset!r}")
        self._check_no_nan()
        for logits in self._logits:
            if reset == "paper":
                logits.mul_(self.kind.final)
            logits.clamp_(max=self.init)
            if optimizer is not None:
                optimizer.state.pop(logits, None)
        self.round += 1
        self._set_progress(0.0)

    @torch.no_grad()
    def detach(self, *, apply: bool = False) -> None:
        """Remove the gates from the model. Masks and statistics of the gates remain available.

        Args:
            apply: whether to multiply the weights by the hard gates; otherwise the weights stay as training left them.

        Raises:
            UsageError: if the gates are already detached.
            MaskError: with `apply`, if gates remove a whole row of a weight that `weight_norm` computes.
        """
        if self._swap is None:
            raise UsageError("these gates are detached already")
        parameters = self._swap.parameters
        if apply and next(computed_weights(self._model), None):
            products = self._multiply(range(len(parameters)), parameters, self._compute_hard_gate)
            check_computed_weights_finite(self._model, parameters, products)
        self._swap.remove()
        self._swap = None
        for number, parameter in enumerate(parameters if apply else ()):
            parameter.copy_(self._multiply([number], [parameter], self._compute_hard_gate)[0])

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes bit for bit, with copies of the logits."""
        return {
            "kind": self.kind.name,
            "init": self.init,
            "seed": self.seed,
            "round": self.round,
            "step": self.step,
            "progress": self.progress,
            "beta": self.beta,
            "hard": self._hard,
            "gates": {name: logits.detach().clone() for name, logits in self.named_parameters()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, as `state_dict` returned it. Optimisers stay valid: logits are changed in place.

        Raises:
            MaskError: if the state belongs to gates of another kind, with other temperatures, or on other weights.
        """
        self._check_resumable(state)
        for name, logits in self.named_parameters():
            logits.copy_(state["gates"][name])
        self.init, self.seed, self.round = state["init"], state["seed"], state["round"]
        self._hard = state["hard"]
        self._set_progress(state["progress"])
        self.set_step(state["step"])

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "gates are not copied: copy the model, attach gates to the copy, and give them this state_dict()"
        )

    def __repr__(self) -> str:
        return (
            f"Gates({self.kind.name}, {len(self._names)} tensors, {self._gate_count:,} weights, round {self.round},"
            f" beta {self.beta:g}{'' if self._swap else ', detached'})"
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _create_logits(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return {name: create_logits(parameter, self.init) for name, parameter in parameters.items()}

    def _check_no_nan(self) -> None:
        for name, logits in self.named_parameters():
            if bool(torch.isnan(logits.detach()).any()):
                raise TrainingError(
                    f"gates of {name!r} are not numbers any more (NaN; progress {self.progress:g}, round {self.round}):"
                    " choose a lower learning rate, or go back to the last checkpoint"
                )

    def _check_resumable(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        if missing := own.keys() - state.keys():
            raise MaskError(f"this is no state of gates: it lacks {', '.join(sorted(missing))}")
        if state["kind"] != own["kind"]:
            raise MaskError(f"the state is of {state['kind']} gates, and these are {own['kind']}")
        if not math.isclose(state["beta"], beta := self.kind.inverse_temperature(state["progress"]), rel_tol=1e-6):
            raise MaskError(
                f"the state has the inverse temperature {state['beta']:g} at progress {state['progress']:g}, where"
                f" these gates have {beta:g}: attach them with the same settings of their kind (final)"
            )
        theirs, mine = ({name: s.shape for name, s in each["gates"].items()} for each in (state, own))
        if theirs != mine:
            names = describe_name_difference(theirs, mine)
            raise MaskError(
                "the state is of gates on other weights: attach them to the same model and scope"
                + (f"; {names}" if names else "")
            )

    def _set_progress(self, progress: float) -> None:
        self._progress, self._moment = progress, Moment(self.init, self.kind.inverse_temperature(progress))
        self._checked = -1

    @property
    def _logit_versions(self) -> tuple[int, ...]:
        """Numbers that change whenever logits do: torch's tensor versions, and the number of optimiser steps.

        The steps are needed because fused optimisers do not increase tensor versions.
        """
        return self._updates, *(logits._version for logits in self._logits)

    @property
    def _gate_count(self) -> int:
        return sum(logits.numel() for logits in self._logits)

    def _retained_logits(self) -> Iterator[Tensor]:
        """Yield the logits of each parameter; with an initial mask, only those of retained weights, as 1-d tensors."""
        for logits, kept in zip(self._logits, self._kept, strict=True):
            yield logits.detach() if kept is None else logits.detach()[kept != 0]

    @property
    def _total(self) -> int:
        """Number of weights, or of channels, of which densities are fractions."""
        return self.weights

    def _multiply_by_gate_size(self, values: Tensor, number: int) -> Tensor:
        """Return one value for each gate of the parameter with index `number`, times the gate's number of weights."""
        return values if self._sizes is None else values * self._sizes[number]

    def _compute_openness(self) -> Iterator[Tensor]:
        for logits, kept in zip(self._logits, self._kept, strict=True):
            opened = self.kind.open(logits, self._moment)
            yield opened if kept is None else opened * kept

    def _apply_gates(self, positions: Sequence[int], weights: Sequence[Tensor], all_parameters: bool) -> list[Tensor]:
        """Return weight * gate of the parameters with the indices `positions`, for training or evaluation mode."""
        if self._lifted:
            return list(weights)
        self._check_devices(positions, weights)
        if self._hard or not (self._model.training or self._drawing):
            gate = self._compute_hard_gate if self._hard else self._compute_test_gate
            products = self._multiply(positions, weights, gate)
            check_computed_weights_finite(self._model, weights, products)
            return products
        if self.kind.draws:
            self._step, self._drawn_at = self.step, self._logit_versions
        return self._apply_training_gates(positions, weights, all_parameters)

    def _multiply(
        self, positions: Sequence[int], weights: Sequence[Tensor], gate: Callable[[int], Tensor]
    ) -> list[Tensor]:
        """Return weight * gate of the parameters with the indices `positions`.

        `gate` computes the gates of the logits with a given index.
        """
        pairs = zip(positions, weights, strict=True)
        return [apply_gate(weight, gate(number), self._kept[number]) for number, weight in pairs]

    def _compute_hard_gate(self, number: int) -> Tensor:
        return self.kind.hard_gate(self._logits[number], self._moment)

    def _compute_test_gate(self, number: int) -> Tensor:
        return self.kind.test_gate(self._logits[number], self._moment)

    def _compute_training_gate(self, number: int) -> Tensor:
        return self.kind.gate(self._logits[number], self._moment, self._draw_uniform(number))

    def _apply_training_gates(
        self, positions: Sequence[int], weights: Sequence[Tensor], all_parameters: bool
    ) -> list[Tensor]:
        """Return weight * gate for training.

        If `all_parameters` (`positions` lists all parameters with gates), cache the sums of open gates for the penalty.
        """
        pairs = [
            self.kind.product(
                weight, self._logits[number], self._kept[number], self._moment, self._draw_uniform(number)
            )
            for number, weight in zip(positions, weights, strict=True)
        ]
        totals = [total for _, total in pairs if total is not None]
        if all_parameters and len(totals) == len(pairs) and torch.is_grad_enabled():
            self._sums = totals, self._moment, self._logit_versions
        return [product for product, _ in pairs]

    def _draw_uniform(self, number: int) -> Tensor | None:
        """Draw uniform numbers in (0, 1) for the parameter with index `number`; None if gates are not random.

        The numbers depend only on the seed, the step and `number`, not on device and memory layout.
        """
        if not self.kind.draws:
            return None
        logits, draw = self._logits[number], generator(self.seed, "gates", self._step, number)
        draws = torch.rand(logits.shape, dtype=logits.dtype, generator=draw)
        return torch.empty_like(logits, requires_grad=False).copy_(draws.clamp_(min=torch.finfo(draws.dtype).eps))

    def _check_devices(self, positions: Sequence[int], weights: Sequence[Tensor]) -> None:
        for number, weight in zip(positions, weights, strict=True):
            if weight.device != self._logits[number].device:
                raise UsageError(
                    f"{self._names[number]!r} is on {weight.device} and its gates are on"
                    f" {self._logits[number].device}: attach gates after the model is where it trains"
                )


HEADROOM = 1.1
"""Gates are closed while their expected density exceeds this number times the requested density, as in the official
code.
"""
SMOOTHING = 0.01
"""Share of the newest ratio in the moving average of `Balance`, as in the official code."""


class Balance:
    """Steers gates to a density: while the gates are too open, a gradient that closes them is added.

    This is GradBalance of Concrete Ticket Search (Arora & Teuscher 2025, arXiv 2512.07142). Let g be the gradient of
    the loss with respect to all logits, E the expected number of retained weights (`Gates.penalty(1.0)`), and e the
    gradient of E. The logits get the gradient g + lambda e. Here, lambda is a moving average over steps. A step adds
    |g| / |e| (L2 norms over all gates) to the average if E exceeds ``headroom * density * weights``, and 0 otherwise.
    So the closing gradient is as strong as the loss gradient, at any scale of the loss. Use an optimiser with
    adaptive step sizes, such as Adam, and initialise gates at the requested density.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> gates = tk.gates.attach(model, kind="binary-concrete", init=0.0)
        >>> balance = tk.gates.Balance(gates, density=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> before = gates.parameters()[0].grad.clone()
        >>> balance.add_gradients()
        >>> bool((gates.parameters()[0].grad > before).all())
        True
    """

    def __init__(
        self, gates: Gates, density: float, *, headroom: float = HEADROOM, smoothing: float = SMOOTHING
    ) -> None:
        """Create a balance.

        Args:
            gates: the gates to steer.
            density: target density of all weights that have gates, above 0 and below 1.
            headroom: the gates are closed while their expected density is above headroom * `density`.
            smoothing: share of the newest ratio in the moving average, above 0 and at most 1.

        Raises:
            UsageError: for settings out of range.
        """
        if not 0 < density < 1:
            raise UsageError(f"gates are balanced at a density above 0 and below 1, not {density!r}")
        if not (headroom > 0 and 0 < smoothing <= 1):
            raise UsageError(
                f"headroom is a number above 0 and smoothing one above 0 and at most 1, not {headroom!r}, {smoothing!r}"
            )
        self._gates, self._smoothing = gates, smoothing
        self._wanted = headroom * density * gates.weights
        self.multiplier: Tensor | None = None
        """The number lambda, a float64 scalar; None before the first step. A checkpoint needs no other state."""

    def add_gradients(self) -> None:
        """Add the gradient that closes gates; call this between `backward` and the step of the gates' optimiser."""
        logits = self._gates.parameters()
        expected = self._gates.penalty(1.0)
        closing = torch.autograd.grad(expected, logits)
        with torch.no_grad():
            opening = [s.grad if s.grad is not None else torch.zeros_like(s) for s in logits]
            ratio = _joint_norm(opening) / (_joint_norm(closing) + torch.finfo(torch.float64).tiny)
            target = torch.where(expected.detach() < self._wanted, torch.zeros_like(ratio), ratio)
            before = target if self.multiplier is None else self.multiplier.to(target.device)
            self.multiplier = torch.lerp(before, target, self._smoothing)
            for s, own, added in zip(logits, opening, closing, strict=True):
                s.grad = torch.addcmul(own, added, self.multiplier.to(added))


def _joint_norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the L2 norm over all tensors; it is computed in float64, where squares of small gradients fit."""
    parts = [torch.linalg.vector_norm(tensor, dtype=torch.float64).to(tensors[0].device) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return total
