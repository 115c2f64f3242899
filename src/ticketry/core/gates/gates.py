"""The gates of a model: their tensors, their penalty, their temperature, and the mask they become."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.allocate import allocate_or_keep
from ticketry.core.computed_weights import check_computed_finite, computed_weights
from ticketry.core.gates.charges import Charges, charged
from ticketry.core.gates.gate_kind import Kind, Moment, gated
from ticketry.core.gates.logits import (
    Histogram,
    Sums,
    check_devices,
    check_numbers,
    check_state,
    counted,
    hardened_mask,
    kept_like,
    logits_like,
    on_for_a_block,
    uniform_like,
)
from ticketry.core.gates.parameter_swap import Swap, places_of
from ticketry.core.gates.updates import tell_of_updates
from ticketry.core.mask import Mask
from ticketry.errors import UsageError

RESETS = ("paper", "code")
Act = Callable[[Tensor, Moment], Tensor]
"""(s, moment) -> gates that are not drawn."""


class Gates:
    """Gates on weights of a model. Made by `attach`.

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
        """s0"""
        self.seed = seed
        self.round = 0
        """Rounds done, by `next_round`."""
        self._model = model
        made = self._made_logits(parameters)
        self._names, self._logits = tuple(made), list(made.values())
        self._kept = [None if within is None else kept_like(s, within[n]) for n, s in self.named_parameters()]
        self._hard = self._lifted = self._drawing = False
        self._checked = -1  # per cent of progress at which all s were last looked through
        self._set_progress(0.0)
        self._step = 0
        self._drawn_at: tuple[int, ...] | None = None
        self._sums: Sums | None = None
        self._updates = 0
        self.charges: Charges | None = None  # of the penalty; None charges all weights alike
        tell_of_updates(self)
        self._swap: Swap | None = Swap(model, places_of(model, parameters), self._products)

    # -- to train --------------------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """The tensors s, for an optimiser. In the shape and layout of their weights, float32 (float64 if those are).

        Weight decay would pull them to 0, the border between on and off: the papers use none.
        """
        return list(self._logits)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name of the weight, its s), in the order of the scope."""
        return list(zip(self._names, self._logits, strict=True))

    @property
    def weights(self) -> int:
        """Weights that have gates."""
        return self._total

    @property
    def beta(self) -> float:
        """The inverse temperature now; 1 for kinds that are not annealed."""
        return self._moment.beta

    @property
    def progress(self) -> float:
        """Of the present round, as last given to `anneal`."""
        return self._progress

    def penalty(self, coefficient: float) -> Tensor:
        """coefficient * the sum over all weights of how far their gates are open: a scalar to add to the loss.

        A sum, so it grows with the model (Savarese et al. 2020: 1e-8; Louizos et al. 2018: 0.1 / examples); with
        `charges` of what open gates cost. After the forward pass next to free for gates that added themselves up.
        """
        sums, self._sums = self._sums, None
        made = sums and torch.is_grad_enabled() and (sums.moment, sums.versions) == (self._moment, self._versions)
        return charged(sums.totals if sums and made else [value.sum() for value in self._open()], self, coefficient)

    def anneal(self, progress: float) -> None:
        """Set the temperature: `progress` is the share of the round that is done, from 0 to 1 (`by_step`, `by_epoch`).

        At every further per cent all s are looked through for what is not a number.

        Raises:
            UsageError: for another progress.
            TrainingError: naming the parameter whose s are not numbers.
        """
        if self._swap:
            self._swap.settle()
        self._progress, self._moment = progress, Moment(self.init, self.kind.inverse_temperature(progress))
        if int(100 * progress) != self._checked:
            check_numbers(self.named_parameters(), self.progress, self.round)
            self._checked = int(100 * progress)

    def set_step(self, step: int) -> None:
        """The step whose draws come next, for kinds that draw: they are a pure function of (seed, step, parameter).

        Not needed in an ordinary loop, where a step begins when the gates have changed. `UsageError` below step 0.
        """
        if step < 0:
            raise UsageError(f"a step is a number from 0 on, not {step!r}")
        self._step, self._drawn_at = step, None

    @property
    def step(self) -> int:
        """The step whose draws the next forward pass will use."""
        return self._step + (self._drawn_at is not None and self._drawn_at != self._versions)

    # -- soft and hard ---------------------------------------------------------------------------------------------

    def hard(self, on: bool = True) -> None:
        """Compute with hard gates (`on`) or not, in train and eval mode; s then gets no gradient.

        Otherwise training uses the soft or drawn gates, and what eval mode uses is said by each kind. Where these leave
        nothing of a row whose norm `weight_norm` divides by, a call is a `MaskError`.
        """
        self._hard = on

    def hardened(self) -> contextlib.AbstractContextManager[None]:
        """Hard gates for the length of a block."""
        return on_for_a_block(self, "_hard")

    def lifted(self) -> contextlib.AbstractContextManager[None]:
        """The model without its gates, for the length of a block: its bare weights, such as for a teacher's outputs."""
        return on_for_a_block(self, "_lifted")

    def drawing(self) -> contextlib.AbstractContextManager[None]:
        """The gates of training in eval mode too, for the length of a block.

        To train gates over frozen weights: nothing of the model is then as when it trains, but the gates.
        """
        return on_for_a_block(self, "_drawing")

    def harden(self, *, collapse: str = "raise") -> Mask:
        """The mask of the gates: 1[s > 0] (hard-concrete: 1[s > log(-gamma / zeta)]). Ties are off; see `ties`.

        Args:
            collapse: what to do with a parameter of which no gate is on: ``raise``, or ``keep`` the one of largest s.

        Raises:
            LayerCollapseError: naming those parameters, if `collapse` is ``raise``.
            TrainingError: naming the parameter whose s are not numbers.
        """
        check_numbers(self.named_parameters(), self.progress, self.round)
        where = f"progress {self.progress:g}, inverse temperature {self.beta:g}, round {self.round}"
        return hardened_mask(dict(self.named_parameters()), self._kept, self.kind.threshold, collapse, where)

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """The mask of the gates of largest s within the mask, at a density; `collapse`, errors as of `tk.allocate`."""
        return allocate_or_keep(self.by_weight(), density, within=self._within(), collapse=collapse)

    def _within(self) -> Mask | None:
        """The mask that gates are to stay within, if there is one."""
        kept = {name: mask != 0 for name, mask in zip(self._names, self._kept, strict=True) if mask is not None}
        return Mask(kept) if kept else None

    def by_weight(self) -> dict[str, Tensor]:
        """name -> the s that each weight is multiplied by, in the weight's shape."""
        return {name: s.detach() for name, s in self.named_parameters()}

    def ties(self) -> dict[str, int]:
        """name -> gates exactly on the border, which `harden` turns off; those that never had a gradient stay there."""
        return self._counted(torch.eq)

    def kept(self) -> dict[str, int]:
        """name -> gates that are on."""
        return self._counted(torch.gt)

    def density(self) -> float:
        """Share of the weights in scope whose gates are on: the density of the mask if hardened now."""
        return sum(self.kept().values()) / self._total

    @torch.no_grad()
    def soft_density(self) -> float:
        """How far gates are open on average: the mean of sigmoid(beta s), or of the probability that m is not 0."""
        return sum(float(value.double().sum()) for value in self._open()) / self._total

    @torch.no_grad()
    def histogram(self, bins: int = 50) -> Histogram:
        """How far the gates (those within the mask) are open, in `bins` equal bins, at least one (`UsageError`)."""
        opened = [self.kind.open(logits, self._moment) for logits in self._inside()]
        return counted(dict(zip(self._names, opened, strict=True)), bins)

    # -- rounds and the end ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def next_round(self, *, reset: str = "paper", optimizer: Optimizer | None = None) -> None:
        """Begin the next round of a search: kept gates start again from s0, suppressed ones stay off; beta is 1 again.

        Args:
            reset: ``paper``: s <- min(beta_T s, s0) (Savarese et al. 2020, algorithm 2). ``code``: s <- min(s, s0), as
                the official code does, since it sets the temperature back before it uses it.
            optimizer: of the gates, whose state for them (momentum) is cleared: it belongs to the round before. The
                official code carries it over.

        Raises:
            UsageError: for kinds that have no such rule.
            TrainingError: naming the parameter whose s are not numbers.
        """
        if not self.kind.rounds:
            raise UsageError(f"gates of kind {self.kind.name!r} have no rule for a further round")
        if reset not in RESETS:
            raise UsageError(f"reset is {' or '.join(RESETS)}, not {reset!r}")
        check_numbers(self.named_parameters(), self.progress, self.round)
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
        """Take the gates off, once (else `UsageError`). The handle stays good for masks and reports.

        The weights are as training left them, or with `apply` times the hard gates (a `MaskError` as of `hard`).
        """
        if self._swap is None:
            raise UsageError("these gates are detached already")
        parameters = self._swap.parameters
        if apply and next(computed_weights(self._model), None):
            products = self._fixed(range(len(parameters)), parameters, self.kind.hard_gate)
            check_computed_finite(self._model, parameters, products)
        self._swap.remove()
        self._swap = None
        for number, parameter in enumerate(parameters if apply else ()):
            parameter.copy_(self._fixed([number], [parameter], self.kind.hard_gate)[0])

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What training goes on from, bit for bit: plain numbers, and copies of the s by name under ``"gates"``."""
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
        """Go on from a state; the tensors s stay the same objects, so that an optimiser goes on with them.

        Raises:
            MaskError: if it is of gates of another kind, of other temperatures or of other weights.
        """
        check_state(state, self.state_dict(), self.kind)
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
            f"Gates({self.kind.name}, {len(self._names)} tensors, {self._total:,} weights, round {self.round},"
            f" beta {self.beta:g}{'' if self._swap else ', detached'})"
        )

    # -- inside ----------------------------------------------------------------------------------------------------

    def _made_logits(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The tensors s by the names that they go by."""
        return {name: logits_like(parameter, self.init) for name, parameter in parameters.items()}

    def _note_update(self, optimizer: Optimizer) -> None:
        """Called after each step of any `optimizer`."""
        mine = {id(logits) for logits in self._logits}
        if any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
            self._updates += 1

    def _set_progress(self, progress: float) -> None:
        self._progress, self._moment = progress, Moment(self.init, self.kind.inverse_temperature(progress))
        self._checked = -1

    @property
    def _versions(self) -> tuple[int, ...]:
        """Changes whenever an s does. Fused optimisers do not count up the versions of what they change."""
        return self._updates, *(logits._version for logits in self._logits)

    @property
    def _total(self) -> int:
        return sum(logits.numel() for logits in self._logits)

    def _inside(self) -> Iterator[Tensor]:
        """The s of each parameter; with a mask, of what it keeps, 1-d."""
        for logits, kept in zip(self._logits, self._kept, strict=True):
            yield logits.detach() if kept is None else logits.detach()[kept != 0]

    def _counted(self, where: Callable[[Tensor, float], Tensor]) -> dict[str, int]:
        """name -> gates whose s is so beside the threshold."""
        at = self.kind.threshold
        return {name: int(where(s, at).sum()) for name, s in zip(self._names, self._inside(), strict=True)}

    def _open(self) -> Iterator[Tensor]:
        for logits, kept in zip(self._logits, self._kept, strict=True):
            opened = self.kind.open(logits, self._moment)
            yield opened if kept is None else opened * kept

    def _products(self, numbers: Sequence[int], weights: Sequence[Tensor], everything: bool) -> list[Tensor]:
        """weight * gate of some parameters, as the model is to see them now."""
        if self._lifted:
            return list(weights)
        self._check_devices(numbers, weights)
        if self._hard or not (self._model.training or self._drawing):
            made = self._fixed(numbers, weights, self.kind.hard_gate if self._hard else self.kind.test_gate)
            check_computed_finite(self._model, weights, made)
            return made
        if self.kind.draws:
            self._step, self._drawn_at = self.step, self._versions
        return self._trained(numbers, weights, everything)

    def _fixed(self, numbers: Sequence[int], weights: Sequence[Tensor], act: Act) -> list[Tensor]:
        """Products by gates that are not those of training."""
        return [
            gated(weight, act(self._logits[number], self._moment), self._kept[number])
            for number, weight in zip(numbers, weights, strict=True)
        ]

    def _trained(self, numbers: Sequence[int], weights: Sequence[Tensor], everything: bool) -> list[Tensor]:
        """Products by the gates of training; their sums are kept where these are all."""
        made = [
            self.kind.product(weight, self._logits[number], self._kept[number], self._moment, self._uniform(number))
            for number, weight in zip(numbers, weights, strict=True)
        ]
        totals = [total for _, total in made if total is not None]
        if everything and len(totals) == len(made) and torch.is_grad_enabled():
            self._sums = Sums(totals, self._moment, self._versions)
        return [product for product, _ in made]

    def _uniform(self, number: int) -> Tensor | None:
        """Draws from (0, 1) for the gates of a parameter at this step: the same on any device and in any layout."""
        return uniform_like(self._logits[number], self.seed, self._step, number) if self.kind.draws else None

    def _check_devices(self, numbers: Sequence[int], weights: Sequence[Tensor]) -> None:
        check_devices([(self._names[number], self._logits[number]) for number in numbers], weights)
