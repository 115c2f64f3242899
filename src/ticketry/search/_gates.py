"""Ticket search by gates: rounds of training with a soft mask, and a ticket after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from ticketry.core.density import check_density
from ticketry.core.pattern import Pattern
from ticketry.errors import UsageError
from ticketry.lab.found import REWINDING, Found, Seeds, check_rates, retrain_after
from ticketry.search._budget import Budgeted, compressed, own_steps
from ticketry.search._pattern import Patterned
from ticketry.search._scope import prunable

if TYPE_CHECKING:
    from ticketry.lab.gating import Gating
    from ticketry.lab.lab import Lab, Result
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

_MOST_ROUNDS = 50
_BETWEEN = ("continue", "rewind")


@dataclass(frozen=True, kw_only=True)
class GateSettings(Patterned, Budgeted):
    """What searches by gates have in common."""

    rewind: str = "2ep"
    """Where tickets start: a step of the first round's training such as 2ep, 500it, 3%; 0 is the initialisation."""
    rounds: int = 5
    """How many times the whole recipe is trained with gates; a ticket is taken after each."""
    init: tuple[float, ...] = (0.0,)
    """s0, what gates begin with: the larger, the denser the tickets. Several are searched side by side, each with its
    own rounds and tickets (-0.2 -0.1 0 0.1)."""
    density: float | None = None
    """Share kept by the last ticket, to within 10 %: s0 is then found round by round, beginning with init."""
    sparsity: float | None = None
    """Share removed by the last ticket, instead of density."""
    penalty: tuple[float, ...] = (1e-8,)
    """lambda, times the sum of all gates in the loss. Several are searched side by side, each with every init."""
    reset: str = "paper"
    """Of gates between rounds: paper (s = min(beta_T s, s0)) or code (s = min(s, s0), as the official code does)."""
    weights_between: str = "continue"
    """Of weights between rounds: continue (as the round before left them) or rewind (those of the rewind step)."""
    gate_lr: float = 0.1
    """Learning rate of the gates."""
    gate_lr_schedule: str = "recipe"
    """Of the gates' learning rate: recipe (rises and falls with that of the weights) or constant."""
    gate_optimizer: str = "sgd"
    """Of the gates: sgd, adam or adamw."""
    gate_momentum: float = 0.9
    """Of the gates' SGD; for Adam and AdamW it is beta1."""
    gate_nesterov: bool = False
    """Nesterov's form of the gates' momentum."""
    gate_weight_decay: float = 0.0
    """Of the gates; the papers have none."""
    retrain: str = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again, as the official code does); or, to prune while training, weights of the round with hard gates:
    rewind_lr, finetune (the default with rewind end) or none (as they are)."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that have no gates (and do not count in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """No gates on the last layer."""
    spare_first_conv: bool = False
    """No gates on the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""

    def __post_init__(self) -> None:
        self.check_budget(trainings="many")
        Pattern.parse(self.pattern).check_blocks("gates")
        if self.budget and self.target is not None:
            raise UsageError(
                "with density the number of rounds is not known beforehand: give init for a budget of steps"
            )
        retrain_after(self.rewind, self.retrain)
        if not 0 < self.rounds <= _MOST_ROUNDS:
            raise UsageError(f"rounds must lie in 1 … {_MOST_ROUNDS}, not {self.rounds}")
        if not self.init or len(set(self.init)) < len(self.init):
            raise UsageError("init names the values of s0 to search with: at least one, and each once")
        if not self.penalty or len(set(self.penalty)) < len(self.penalty):
            raise UsageError("penalty names the values of lambda to search with: at least one, and each once")
        if self.weights_between not in _BETWEEN:
            raise UsageError(f"weights_between {self.weights_between!r} is not known: {', '.join(_BETWEEN)}")
        if self.target is not None and len(self.members) > 1:
            raise UsageError("density finds s0 itself: give one init at most, where it begins, and one penalty")

    @property
    def members(self) -> tuple[tuple[float, float], ...]:
        """(s0, penalty) of each search that runs side by side: the densest first."""
        return tuple(product(sorted(self.init, reverse=True), sorted(self.penalty)))

    @property
    def target(self) -> float | None:
        """The density asked for, if one is."""
        if self.density is None and self.sparsity is None:
            return None
        return check_density(self.density, self.sparsity)

    def gating(self) -> dict[str, Any]:
        """Of `lab.gating.Gating`, what does not change from round to round."""
        return {
            "lr": self.gate_lr,
            "lr_schedule": self.gate_lr_schedule,
            "optimizer": self.gate_optimizer,
            "momentum": self.gate_momentum,
            "nesterov": self.gate_nesterov,
            "weight_decay": self.gate_weight_decay,
            "pattern": self.pattern,
        }


def levels(settings: GateSettings) -> int:
    """How many tickets a replicate will find."""
    return len(settings.members) * settings.rounds


class Rounds:
    """What all rounds of one replicate share."""

    def __init__(self, lab: Lab, task: Task, recipe: Recipe, settings: GateSettings, seeds: Seeds) -> None:
        from ticketry.lab.gating import Gating

        self.lab, self.task, self.recipe, self.settings, self.seeds = lab, task, recipe, settings, seeds
        self.whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
        self.step = self.whole.at(settings.rewind)
        self._gating = Gating(scope=tuple(prunable(lab, task, settings)), reset=settings.reset, **settings.gating())
        for init, penalty in settings.members:
            self._gates(init, penalty, 1)  # a wrong number is told before anything is trained

    def train(self, init: float, penalty: float, chain: Sequence[Result]) -> Result:
        """The round after those of `chain`, the first if there are none.

        Momentum belongs to the round before and is not taken along. Each round has its own order.
        """
        from ticketry.core.seeds import mix
        from ticketry.lab.segment import Start

        number = len(chain) + 1
        gates = self._gates(init, penalty, number)
        if not chain:
            segment = replace(self.whole, gates=gates)
        else:
            weights = self.rewound(chain) if self.settings.weights_between == "rewind" else chain[-1]
            segment = self.lab.segment(
                self.task,
                start=Start(state=weights.model, gates=chain[-1].gates),
                order_seed=mix(self.seeds.order, "round", number),
                recipe=self.recipe,
                gates=gates,
            )
        keep = () if chain else (self.step,)
        label = f"s0 {init:.4g}" + (f" penalty {penalty:.4g}" if len(self.settings.penalty) > 1 else "")
        return self.lab.train(segment, keep=keep, label=f"{label} round {number}")

    def rewound(self, chain: Sequence[Result]) -> Result:
        """The state at the rewind step, in the first round."""
        return self.lab.at(chain[0], self.step)

    def _gates(self, init: float, penalty: float, number: int) -> Gating:
        from ticketry.core.gates import KINDS
        from ticketry.core.seeds import mix

        seed = mix(self.seeds.mask, "gates", number) if KINDS[self._gating.kind].draws else 0
        reset = self.settings.reset if number > 1 else None
        return replace(self._gating, init=init, penalty=penalty, seed=seed, reset=reset)


def search(lab: Lab, task: Task, recipe: Recipe, settings: GateSettings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, to compare with; then for each s0 and penalty a ticket a round."""
    from ticketry.search._s0 import steered

    retrain = retrain_after(settings.rewind, settings.retrain)
    check_rates(retrain, recipe.schedule)
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    step = whole.at(settings.rewind)
    needed = settings.rounds * whole.total + own_steps(retrain, step, whole.total)
    rounds = Rounds(lab, task, *compressed(lab, task, recipe, settings, needed, ("rewind",)), seeds)
    dense = lab.train(whole, keep=(step,), label="dense")
    yield Found(0, None, lab.at(dense, step), dense, retrain, dense)

    def ticket(level: int, chain: list[Result], searched: list[Result]) -> Found:
        return _ticket(rounds, level, chain, searched, dense, retrain)

    if settings.target is not None:
        for number, (chain, searched) in enumerate(steered(rounds, settings.target), start=1):
            yield ticket(number, chain, searched)
        return

    def member(position: int, init: float, penalty: float) -> list[Found]:
        found: list[Found] = []
        chain: list[Result] = []
        for number in range(1, settings.rounds + 1):
            chain = [*chain, rounds.train(init, penalty, chain)]
            found.append(ticket(position * settings.rounds + number, chain, chain))
        return found

    members = [partial(member, position, *knobs) for position, knobs in enumerate(settings.members)]
    for found in lab.gather(members):
        yield from found


def _ticket(
    rounds: Rounds, level: int, chain: list[Result], searched: list[Result], dense: Result, retrain: str
) -> Found:
    from ticketry.lab.harden import hardened_mask, hardened_weights
    from ticketry.lab.retrain import retraining

    lab, last = rounds.lab, chain[-1]
    mask = hardened_mask(lab, last)
    rewound = rounds.rewound(chain)
    segment = retraining(
        lab,
        rounds.task,
        rounds.recipe,
        retrain=retrain,
        mask=mask,
        rewound=rewound,
        trained=last if retrain in REWINDING else replace(last, model=hardened_weights(lab, last)),
        order_seed=rounds.seeds.order,
    )
    result = lab.train(segment, label=f"level {level} ticket")
    return Found(level, mask, rewound, dense, retrain, result, tuple(searched), pattern=rounds.settings.pattern)
