"""Kinds of gates: the base class, four built-in kinds, and the registry `KINDS`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ticketry.core.gates.product import apply_gate, sigmoid_product
from ticketry.errors import UsageError
from ticketry.registry import Registry

LARGEST_BETA = 1e12
"""Largest accepted inverse temperature. Far smaller ones already round a float32 sigmoid to 0 or 1; none overflows."""


def inverse_temperature(progress: float, final: float) -> float:
    """Return beta = final ** progress: 1 at the start of a round, `final` at its end (Savarese et al. 2020, section 4).

    Args:
        progress: share of the round that is done, 0 <= progress <= 1.
        final: beta_T, the inverse temperature at the end of the round, at least 1.

    Raises:
        UsageError: for numbers outside these ranges.

    Examples:
        >>> tk.gates.inverse_temperature(0.5, final=100.0)
        10.0
        >>> tk.gates.inverse_temperature(2.0, final=100.0)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: progress is a share of the round that is done, from 0 to 1, not 2.0
    """
    if not 0 <= progress <= 1:
        raise UsageError(f"progress is a share of the round that is done, from 0 to 1, not {progress!r}")
    return float(check_final_inverse_temperature(final) ** progress)


def check_final_inverse_temperature(final: float) -> float:
    """Return `final`, the inverse temperature at the end of a round; raise `UsageError` if it is out of range."""
    if not 1 <= final <= LARGEST_BETA:
        raise UsageError(f"the final inverse temperature is a number from 1 to {LARGEST_BETA:g}, not {final!r}")
    return final


def by_step(step: int, steps: int) -> float:
    """Return `step` / `steps`, the progress after `step` of the `steps` optimiser steps of a round.

    With this progress, which is the paper's, every step lowers the temperature.

    Examples:
        >>> tk.gates.by_step(50, 100)
        0.5
    """
    _check_progress(step, steps, "step")
    return step / steps


def by_epoch(epoch: int, epochs: int) -> float:
    """Return the progress in epoch 0, 1, … of `epochs`: 0 in the first epoch, 1 in the last.

    The official code of Savarese et al. (2020) uses this progress. In a round of a single epoch, it is 1.

    Examples:
        >>> [tk.gates.by_epoch(epoch, 3) for epoch in range(3)]
        [0.0, 0.5, 1.0]
    """
    _check_progress(epoch, epochs - 1, "epoch")
    return epoch / (epochs - 1) if epochs > 1 else 1.0


def _check_progress(done: int, last: int, what: str) -> None:
    if not 0 <= done <= last:
        raise UsageError(f"{what} {done!r} is not one of a round's, which go from 0 to {last!r}")


@dataclass(frozen=True)
class Moment:
    """The numbers besides the logits s on which gates depend: the initial logit and the inverse temperature.

    Examples:
        >>> moment = tk.gates.Moment(init=0.0, beta=2.0)
        >>> tk.gates.Continuous().gate(torch.zeros(2), moment, None)
        tensor([1., 1.])
    """

    init: float
    """Initial value s0 of every logit."""
    beta: float
    """Current inverse temperature."""


class Kind:
    """Base class of kinds of gates, which define how gates are computed from their logits s.

    The methods take logits of any shape, and return tensors of the same shape that are differentiable in s.

    Examples:
        >>> class Square(tk.gates.Kind):
        ...     name = "square"
        ...     def gate(self, logits, moment, uniform):
        ...         return logits.clamp(min=0) ** 2
        ...     def test_gate(self, logits, moment):
        ...         return self.gate(logits, moment, None)
        ...     def open(self, logits, moment):
        ...         return self.gate(logits, moment, None).clamp(max=1)
        >>> kind, moment = Square(), tk.gates.Moment(init=1.0, beta=1.0)
        >>> s = torch.tensor([-1.0, 0.5, 1.0])
        >>> kind.threshold, kind.inverse_temperature(0.5), kind.hard_gate(s, moment), kind.open(s, moment)
        (0.0, 1.0, tensor([0., 1., 1.]), tensor([0.0000, 0.2500, 1.0000]))
        >>> kind.product(torch.ones(3), s, None, moment, None)[0], kind.test_gate(s, moment)
        (tensor([0.0000, 0.2500, 1.0000]), tensor([0.0000, 0.2500, 1.0000]))
        >>> gates = tk.gates.attach(nn.Linear(4, 3), kind=kind, init=1.0)
        >>> gates.soft_density()
        1.0
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    """Whether gates are random in training."""
    rounds: ClassVar[bool] = False
    """Whether a search may have several rounds, by the rule of Continuous Sparsification (`Gates.next_round`)."""
    final: float = 1.0
    """beta_T: the inverse temperature at the end of a round, and the factor in the reset between rounds."""

    @property
    def threshold(self) -> float:
        """Gates with a logit above this number are on; gates with exactly this logit are off, and count as ties."""
        return 0.0

    def inverse_temperature(self, progress: float) -> float:
        """Return the inverse temperature beta at `progress` of a round (0 to 1); 1 for kinds without annealing."""
        inverse_temperature(progress, 1.0)  # raises for a progress outside [0, 1]
        return 1.0

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        """Return the gates of training mode.

        Args:
            logits: logits of a parameter's gates.
            moment: the initial logit s0 and the inverse temperature.
            uniform: uniform random numbers in (0, 1) in the shape of `logits`; None for kinds that are not random.
        """
        raise NotImplementedError

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        """Return the gates of evaluation mode, which are deterministic."""
        raise NotImplementedError

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        """Return the gates of the hardened network, exactly 0 where the mask removes weights."""
        return (logits > self.threshold).to(logits.dtype)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        """Return how far each gate is open, from 0 to 1; the penalty sums this, and `soft_density` averages it."""
        raise NotImplementedError

    def product(
        self, weight: Tensor, logits: Tensor, kept: Tensor | None, moment: Moment, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return weight * gate for training, in the weight's dtype, and the sum of `open` over the gates.

        A kind that would have to compute the sum separately returns None in place of the sum.

        Args:
            weight: values of the parameter.
            logits: logits of the parameter's gates.
            kept: the initial mask as 0 and 1; None if all weights may be retained.
            moment: the initial logit s0 and the inverse temperature.
            uniform: uniform random numbers; None for kinds that are not random.
        """
        return apply_gate(weight, self.gate(logits, moment, uniform), kept), None


def sigmoid(logits: Tensor, factor: float = 1.0) -> Tensor:
    """Return sigmoid(factor * logits)."""
    return torch.sigmoid(logits if factor == 1 else logits * factor)


@dataclass(frozen=True)
class Continuous(Kind):
    """Gates of Continuous Sparsification (Savarese, Silva & Maire 2020, arXiv 1912.04427, section 4 and algorithm 2).

    In training and evaluation, a gate is m = sigmoid(beta s) / sigmoid(s0) with beta = final ** progress. The division
    is from the official code: it makes new gates 1 (up to rounding), so that attaching gates does not change what a
    trained network computes. A hard gate is 1[s > 0] / sigmoid(s0), the limit of soft gates as beta grows. The penalty
    sums sigmoid(beta s), as in the paper. The official code sums the divided gates instead, so its penalty is
    1 / sigmoid(s0) times as large.

    Examples:
        >>> kind, s = tk.gates.Continuous(final=100.0), torch.tensor([-1.0, 0.0, 1.0])
        >>> kind.inverse_temperature(0.5)
        10.0
        >>> moment = tk.gates.Moment(init=0.0, beta=10.0)
        >>> kind.gate(s, moment, None)
        tensor([9.0796e-05, 1.0000e+00, 1.9999e+00])
        >>> kind.hard_gate(s, moment), kind.scale(moment)
        (tensor([0., 0., 2.]), 2.0)
    """

    name: ClassVar[str] = "continuous"
    rounds: ClassVar[bool] = True
    final: float = 200.0
    """beta_T, the inverse temperature at the end of a round."""

    def __post_init__(self) -> None:
        check_final_inverse_temperature(self.final)

    def inverse_temperature(self, progress: float) -> float:
        return inverse_temperature(progress, self.final)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        return sigmoid(logits, moment.beta) * self.scale(moment)

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self.gate(logits, moment, None)

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return super().hard_gate(logits, moment) * self.scale(moment)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits, moment.beta)

    def product(
        self, weight: Tensor, logits: Tensor, kept: Tensor | None, moment: Moment, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if weight.dtype != logits.dtype or torch._C._are_functorch_transforms_active():
            return apply_gate(weight, self.gate(logits, moment, None), kept), None
        return sigmoid_product(weight, logits, kept, moment.beta, self.scale(moment))

    @staticmethod
    def scale(moment: Moment) -> float:
        """Return 1 / sigmoid(s0); gates are multiplied by this number so that new gates are 1."""
        return 1 + math.exp(-moment.init)


@dataclass(frozen=True)
class Stochastic(Kind):
    """Gates of Iterative Stochastic Sparsification (ISS), the baseline of Savarese et al. (2020).

    In training, a gate is m ~ Bernoulli(sigmoid(s)), drawn once per step, with the straight-through gradient
    dm/ds = sigmoid(s) (1 - sigmoid(s)) (Bengio et al. 2013, arXiv 1308.3432). Gates are 0 or 1, without division by
    sigmoid(s0). In evaluation, a gate is 1[s > 0], hard or not. The penalty sums sigmoid(s), which is the expected
    number of retained weights. There is no temperature to anneal.

    Examples:
        >>> kind, s = tk.gates.Stochastic(), torch.tensor([0.0, 0.0, 2.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.gate(s, moment, uniform=torch.tensor([0.4, 0.6, 0.6]))
        tensor([1., 0., 1.])
        >>> kind.test_gate(s, moment)
        tensor([0., 0., 1.])
    """

    name: ClassVar[str] = "stochastic"
    draws: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    final: float = 200.0
    """beta_T, the factor of s in the reset between rounds (`Gates.next_round`), as for `Continuous`."""

    def __post_init__(self) -> None:
        check_final_inverse_temperature(self.final)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        probability = sigmoid(logits)
        drawn = (uniform < probability).to(logits.dtype)
        return drawn + (probability - probability.detach())

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self.hard_gate(logits, moment)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)


@dataclass(frozen=True)
class BinaryConcrete(Kind):
    """Random gates in (0, 1); the logit s of a gate is the logit of the probability to retain the weight.

    In training, a gate is m = sigmoid((log u - log(1 - u) + s) / temperature), with u ~ U(0, 1) drawn once per step
    (Maddison et al. 2017, arXiv 1611.00712, section 3.2 and appendix); so P(m > 0.5) = sigmoid(s). In evaluation, a
    gate is the probability sigmoid(s); a hard gate is 1[s > 0]. The penalty sums sigmoid(s), which is the expected
    number of retained weights. The temperature is not annealed. Concrete Ticket Search (Arora & Teuscher 2025, arXiv
    2512.07142) trains such gates while the weights are frozen.

    For a mask of an exact density, as in Concrete Ticket Search, call `Gates.allocate`.

    Examples:
        >>> kind, s = tk.gates.BinaryConcrete(temperature=1.0), torch.tensor([0.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.gate(s, moment, uniform=torch.tensor([0.75]))
        tensor([0.7500])
        >>> kind.test_gate(s, moment)
        tensor([0.5000])
    """

    name: ClassVar[str] = "binary-concrete"
    draws: ClassVar[bool] = True
    temperature: float = 2 / 3

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        return draw_concrete(logits, uniform, self.temperature)

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)


def draw_concrete(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return binary-concrete random gates: sigmoid((logit(uniform) + logits) / temperature)."""
    return torch.sigmoid((torch.logit(uniform) + logits) / temperature)


def check_temperature(temperature: float) -> None:
    """Raise `UsageError` unless 0 < temperature <= 1; at higher temperatures gates avoid 0 and 1."""
    if not 0 < temperature <= 1:
        raise UsageError(f"the temperature of a concrete gate is above 0 and at most 1, not {temperature!r}")


@dataclass(frozen=True)
class HardConcrete(Kind):
    """Gates of L0 regularisation (Louizos, Welling & Kingma 2018, arXiv 1712.01312), with log alpha as logit s.

    In training, a gate is m = clip(z (zeta - gamma) + gamma, 0, 1), where z is random as in `BinaryConcrete` (equations
    10 and 11). In evaluation, a gate, hard or not, is m = clip(sigmoid(s) (zeta - gamma) + gamma, 0, 1) (equation 13).
    The mask retains the weights whose gate is not 0, that is, with s > log(-gamma / zeta) = -2.398. The penalty sums
    P(m != 0) = sigmoid(s - temperature log(-gamma / zeta)) (equation 12), which is the expected number of retained
    weights. The temperature is not annealed.

    Examples:
        >>> kind, s = tk.gates.HardConcrete(), torch.tensor([-3.0, 0.0, 3.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.test_gate(s, moment), round(kind.threshold, 3)
        (tensor([0.0000, 0.5000, 1.0000]), -2.398)
    """

    name: ClassVar[str] = "hard-concrete"
    draws: ClassVar[bool] = True
    gamma: float = -0.1
    """Lower end, below 0, of the interval to which z is stretched before clipping."""
    zeta: float = 1.1
    """Upper end, above 1, of the interval to which z is stretched before clipping."""
    temperature: float = 2 / 3
    """Temperature of z; the paper calls it beta."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not (self.gamma < 0 and self.zeta > 1):
            raise UsageError(f"hard-concrete gates need gamma < 0 and zeta > 1, not {self.gamma!r} and {self.zeta!r}")

    @property
    def threshold(self) -> float:
        return math.log(-self.gamma / self.zeta)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        return self._stretch_and_clip(draw_concrete(logits, uniform, self.temperature))

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self._stretch_and_clip(sigmoid(logits))

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        # At the threshold itself, rounding would leave a gate slightly above 0 outside of the mask.
        return self._stretch_and_clip(sigmoid(logits)) * (logits > self.threshold)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits - self.temperature * self.threshold)

    def _stretch_and_clip(self, concrete: Tensor) -> Tensor:
        return (concrete * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


_MODULE = "ticketry.core.gates.kinds"


def _check_gate_class(name: str, found: Any) -> type[Kind]:
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise UsageError(f"{found!r} is no class derived from ticketry.gates.Kind")
    lacks = [
        f"{method}()" for method in ("gate", "test_gate", "open") if getattr(found, method) is getattr(Kind, method)
    ]
    if not isinstance(getattr(found, "name", None), str):
        lacks.append("name, a word")
    if lacks:
        raise UsageError(f"the kind of gates {found.__name__} lacks {', '.join(lacks)}")
    return found


def _check_gate_shapes(kind: Kind) -> Kind:
    """Return `kind`; raise `UsageError` if a method of it does not return a tensor in the shape of the logits."""
    logits, moment = torch.zeros(3, 2), Moment(0.0, kind.inverse_temperature(0.0))
    given = {
        "gate": kind.gate(logits, moment, torch.full_like(logits, 0.5) if kind.draws else None),
        "test_gate": kind.test_gate(logits, moment),
        "hard_gate": kind.hard_gate(logits, moment),
        "open": kind.open(logits, moment),
    }
    for name, gates in given.items():
        if not isinstance(gates, torch.Tensor) or gates.shape != logits.shape:
            got = f"{list(gates.shape)}" if isinstance(gates, torch.Tensor) else f"a {type(gates).__name__}"
            raise UsageError(f"{name}() of the gates {kind.name!r} gives {got} for s of shape {list(logits.shape)}")
    return kind


KINDS: Registry[type[Kind]] = Registry(
    "kind of gates",
    "ticketry.gates",
    {
        "continuous": f"{_MODULE}:Continuous",
        "stochastic": f"{_MODULE}:Stochastic",
        "hard-concrete": f"{_MODULE}:HardConcrete",
        "binary-concrete": f"{_MODULE}:BinaryConcrete",
    },
    make=_check_gate_class,
    unknown="gates of kind {name!r} are not known: {names}",
)
"""The classes of gates by name. Other packages add classes by entry points of the group ``ticketry.gates``."""


def make_kind(kind: object, **settings: object) -> Kind:
    """Return a kind of gates, given its name in `KINDS`; a `Kind` object is checked and returned unchanged.

    The `settings` are values of the kind's fields; settings that are not fields of the kind are ignored.
    """
    if isinstance(kind, Kind):
        _check_gate_class("", type(kind))
        return _check_gate_shapes(kind)
    if not isinstance(kind, str):
        what = f"the class {kind.__name__}: call it" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UsageError(f"kind= is a name ({', '.join(KINDS.built_in)}, …) or an object of a kind's class, not {what}")
    found = KINDS.get(kind)
    own = getattr(found, "__dataclass_fields__", {})
    try:
        created = found(**{name: value for name, value in settings.items() if name in own})
    except TypeError as error:
        raise UsageError(f"the kind of gates {kind!r} cannot be made by its name alone: {error}") from error
    return _check_gate_shapes(created)
