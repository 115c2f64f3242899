"""Keeps pruned weights at exactly zero, in any training loop."""

from __future__ import annotations

import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from ticketry.core.computed_weights import computed_weights
from ticketry.core.devices.parts import (
    is_spread,
    part,
    part_like,
    put_back,
    require_one_mask,
    require_usable,
)
from ticketry.core.mask import Mask
from ticketry.core.sparse_training._held import HeldParameter, Orphans, Places, mask_history, states_of
from ticketry.core.sparse_training._left import release_left
from ticketry.core.sparse_training._registrations import Listening
from ticketry.errors import HoldError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.optimizer_steps import Stepping

# Optimisers whose step treats every weight by itself and maps (weight 0, gradient 0, state 0) to weight 0: SGD with
# momentum and weight decay, the Adam family, … . For any other, the weights are masked again after each step.
_ELEMENTWISE: tuple[type[Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)


_SUMS = 64
"""Sums that are looked at together, see `_FiniteSteps`."""


class Hold:
    """Holds a mask over a model while it trains: removed weights stay exactly 0. See `hold`.

    Examples:
        >>> model = nn.Linear(10, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> held = tk.Hold(model, tk.prune(model, density=0.2), hooks=False)  # a loop that masks by itself
        >>> model(torch.randn(8, 10)).square().mean().backward()
        >>> held.mask_gradients()
        >>> model.weight.grad.count_nonzero()
        tensor(10)
        >>> optimizer.step()
        >>> held.mask_state(optimizer)
        >>> held.mask_weights()
        >>> held.check(optimizer)
        >>> held.tensors[0].sum()
        tensor(10.)
        >>> held.release()
    """

    @entry_point(Need(python=False, floats=False, training=True))
    def __init__(self, model: nn.Module, mask: Mask, *, hooks: bool = True) -> None:
        """`hooks=False` is for a loop that calls `mask_gradients` and `mask_state` itself, which costs less."""
        release_left(model)
        self._mask, self._hooks, self._left_behind = mask, hooks, False
        put_back(model)
        parameters = mask.parameters(model)
        require_usable(parameters)
        require_one_mask(model, parameters, mask)
        mask.apply_(model)
        self._places = Places(model, mask)
        self._held = {
            name: HeldParameter(parameter, mask[self._places.masked_by[name]], hooks)
            for name, parameter in self._places.look().items()
        }
        self._known: weakref.WeakKeyDictionary[Optimizer, object] = weakref.WeakKeyDictionary()
        self._watch = _FiniteSteps(self._held)
        self._orphans = Orphans()
        self._before_forward: torch.utils.hooks.RemovableHandle | None = None
        self.mask_gradients()  # those of a backward pass before the mask came
        self._handles: list[Stepping | Listening] = []
        if hooks:
            # A compiled step calls them as they are: they look at a model's modules, which may be compiled as well.
            before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
            self._handles = [Stepping(before=before, after=after), Listening(self._registered)]

    # -- for a loop of one's own -----------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The mask as it is held in memory: 0 and 1 in the type of the weights."""
        self._require_original()
        return [held.kept for held in self._held.values()]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to 0, before clipping and stepping."""
        self._require_original()
        pairs = [(held.gradient, held) for held in self._held.values()]
        dense = [(gradient, held) for gradient, held in pairs if gradient is not None and not gradient.is_sparse]
        if dense:
            torch._foreach_mul_([gradient for gradient, _ in dense], [held.kept_like(g) for g, held in dense])
        for gradient, held in pairs:
            if gradient is not None and gradient.is_sparse:
                held.parameter.grad = gradient * held.kept_like(gradient)

    @torch.no_grad()
    def mask_state(self, optimizer: Optimizer) -> None:
        """Set the optimiser's state (momentum, moments) of removed weights to 0.

        L-BFGS keeps pairs of steps and gradients, whose products it uses: with those of another network it starts anew.
        """
        self._require_original()
        mask_history(optimizer, self._held)
        for held in self._held.values():
            for tensor in states_of(optimizer, held.parameter):
                tensor.mul_(held.kept_like(tensor, once=True))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set removed weights to 0."""
        self._require_original()
        parameters: list[Tensor] = [part(held.parameter) for held in self._held.values()]
        kept = [held.kept_like(own) for held, own in zip(self._held.values(), parameters, strict=True)]
        torch._foreach_mul_(parameters, kept)
        torch.clear_autocast_cache()  # it has weights as they were before

    # -- the promise -----------------------------------------------------------------------------------------------

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Make sure that removed weights, and the optimiser's state for them, are exactly 0, in the model as it is.

        Raises:
            HoldError: naming the parameter, how many of its weights are not 0, and the largest; or that the model has
                no such parameter any more.
        """
        self._require_original()
        put_back(self._places.model)
        for name, parameter in self._places.parameters().items():
            removed = self._removed(name, parameter)
            self._require_zero(f"weights of {name!r}", part(parameter.detach()), removed)
            for tensor in states_of(optimizer, parameter) if optimizer else ():
                self._require_zero(f"optimiser state of {name!r}", tensor, removed.to(tensor.device))
        self._check_computed()

    def release(self) -> None:
        """Stop holding. The weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._disarm()
        for held in self._held.values():
            held.let_go()

    def __enter__(self) -> Hold:
        self._require_original()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if kind is None:
            self.check()
            self._orphans.require_none()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: its model is a free one, as every copy of a held model is, see docs/optimisers.md."""
        return {"_left_behind": True, "_held": {}, "_handles": [], "_before_forward": None}

    def _require_original(self) -> None:
        """A copy holds nothing, and its model would train as a dense one does."""
        if self._left_behind:
            raise UsageError(
                "this is a copy of a held mask, and copies hold no weights: hold the mask on the copied model, with"
                " tk.hold(model, mask)"
            )

    # -- optimisers ------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._places.as_seen(self._held):
            put_back(self._places.model)
            try:
                self._follow()
            except HoldError:
                if self._concerns(optimizer) or self._places.has_parameter_of(optimizer):
                    raise
                return  # another model's step; the next one of this model reports it, or the check
        # State from before the mask came would move removed weights. A load of another state makes a new dictionary.
        if self._known.get(optimizer) is not optimizer.state and self._concerns(optimizer):
            self._known[optimizer] = optimizer.state
            self.mask_state(optimizer)

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._orphans.after_step(optimizer, self._held)
        if optimizer not in self._known and not self._concerns(optimizer):
            return
        if type(optimizer) not in _ELEMENTWISE:
            self.mask_weights()
        self._watch.after_step(optimizer)

    def _concerns(self, optimizer: Optimizer) -> bool:
        mine = {id(held.parameter) for held in self._held.values()}
        return any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"])

    # -- names, not objects ----------------------------------------------------------------------------------------

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        """Something takes a place in a module: before anything is computed with it, it is looked at who holds what."""
        if any(is_spread(held.parameter) for held in self._held.values()):
            return  # fully_shard puts whole parameters in their places and takes them out: the next step looks
        if self._before_forward is None and self._places.is_on_the_way(module, name):
            self._before_forward = register_module_forward_pre_hook(self._at_forward)

    def _at_forward(self, module: nn.Module, args: object) -> None:
        self._disarm()
        with suppress(HoldError):  # modules may be on their way to another place: the next step tells
            self._follow()

    def _disarm(self) -> None:
        if self._before_forward is not None:
            self._before_forward.remove()
            self._before_forward = None

    @torch.no_grad()
    def _follow(self) -> None:
        """Hold the objects that now have the names, as those before them were held from the beginning on."""
        now = self._places.look()
        for name, parameter in now.items():
            if name in self._held and is_spread(parameter) and not is_spread(self._held[name].parameter):
                raise HoldError(
                    f"{name!r} was held whole and now lies in parts on several devices: call fully_shard first, make"
                    " the optimiser, and hold the mask then"
                )
        for name in [name for name, held in self._held.items() if not held.is_still(now.get(name))]:
            before = self._held.pop(name)
            before.let_go()
            self._orphans.add(name, before.parameter, now.get(name))
        for name in now.keys() - self._held.keys():
            held = self._held[name] = HeldParameter(now[name], self._mask[self._places.masked_by[name]], self._hooks)
            held.mask()
        self._known.clear()
        self._watch.see(self._held)

    # -- the check -------------------------------------------------------------------------------------------------

    def _removed(self, name: str, parameter: nn.Parameter) -> Tensor:
        held = self._held.get(name)
        if held is not None and held.parameter is parameter:
            return held.kept_like(part(parameter), once=True) == 0
        return ~part_like(self._mask[self._places.masked_by[name]], parameter).to(parameter.device)

    def _check_computed(self) -> None:
        names = {id(parameter): name for name, parameter in self._places.parameters().items()}
        for computed in computed_weights(self._places.model):
            for original in computed.originals:
                if id(original) in names:
                    name = names[id(original)]
                    weight = computed.value()
                    self._require_zero(f"weights computed from {name!r}", weight, self._removed(name, original))

    def _require_zero(self, what: str, tensor: Tensor, removed: Tensor) -> None:
        stray = torch.where(removed, tensor, 0)
        if stray.any():
            raise HoldError(
                f"{int(stray.count_nonzero())} of {int(removed.sum())} pruned {what} are not 0 (up to"
                f" {float(stray.abs().max()):.3g}): {self._reason(bool(stray.isfinite().all()))}"
            )

    def _reason(self, finite: bool) -> str:
        outside = "something outside the optimiser's step wrote them, such as a load of weights or an average of models"
        if finite or (self._hooks and not self._watch.steps):
            return outside
        first = self._watch.first_not_finite()
        if first is None:
            return f"the loss or its gradient was not finite, or {outside}"
        return (
            f"the loss or its gradient was not finite at step {first} of the optimiser, counted from where the mask was"
            " held: lower the learning rate, clip gradients or look at that batch"
        )


class _FiniteSteps:
    """Counts the steps after which the smallest held parameter was finite.

    What is not finite stays so: the first step that was not is the one after those. A loss that is not finite reaches
    every weight, so one parameter tells it. Its sums are looked at together, and without waiting for a GPU.
    """

    def __init__(self, held: dict[str, HeldParameter]) -> None:
        self.steps = 0
        self._clock: weakref.ref[Optimizer] | None = None
        self._finite = torch.zeros((), dtype=torch.long)
        self._sums: list[Tensor] = []
        self.see(held)

    def see(self, held: dict[str, HeldParameter]) -> None:
        """Take the parameters that are held from now on."""
        self._probe = min((each.parameter for each in held.values()), key=lambda parameter: parameter.numel())

    def after_step(self, optimizer: Optimizer) -> None:
        # The steps of one optimiser count: another may step inside it (SAM), or beside it.
        if self._clock is None or self._clock() is None:
            self._clock = weakref.ref(optimizer)
        if self._clock() is not optimizer:
            return
        self.steps += 1
        total = part(self._probe.detach()).sum()
        if self._sums and (len(self._sums) == _SUMS or total.device != self._sums[0].device):
            self._count()
        self._sums.append(total)

    def first_not_finite(self) -> int | None:
        """The number of the step, from 1 on; None if all were finite."""
        self._count()
        finite = int(self._finite)
        return finite + 1 if finite < self.steps else None

    def _count(self) -> None:
        if self._sums:
            finite = torch.stack(self._sums).isfinite().sum()
            self._finite = finite + self._finite.to(finite.device)
            self._sums = []


def hold(model: nn.Module, mask: Mask) -> Hold:
    """Keep the weights that `mask` removes at exactly 0 while `model` trains, in any loop.

    Removed weights are set to 0 once; from then on their gradients are set to 0 as they are accumulated, so that
    clipping and gradient norms see the masked gradient, and SGD (momentum, weight decay) and the Adam family leave
    them at 0. Momentum from before is cleared, L-BFGS's history too. For optimisers that mix weights (Muon, L-BFGS,
    one's own) the weights are masked after each step as well. Leaving the block checks that it held, in the model as it
    is then.

    What is held are names: a parameter that takes the place of another (a load with ``assign=True``, a layer that is
    rebuilt) is masked and held as well, from the next forward pass on, or from the next step of an optimiser where
    torch tells nobody of it. docs/optimisers.md has a table of optimisers and wrappers.

    Args:
        model: any module; it keeps its class, names and state dict.
        mask: of parameters of this model.

    Raises:
        MaskError: if the mask does not fit the model; or, of a model that several processes train
            (DistributedDataParallel, `fully_shard`), if they hold different masks. Each of them calls this.
        UsageError: for a mask that is no `Mask`; for parameters in parts that have no values yet, or do not lie in even
            pieces.
        HoldError: on leaving the block, if a removed weight is not 0: after a loss that is not finite it names the
            step; or if the optimiser still steps a parameter that another took the name of. At a step of an optimiser,
            if the model has lost a parameter of the mask.

    Examples:
        >>> model = nn.Linear(10, 5)
        >>> mask = tk.prune(model, density=0.2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tk.hold(model, mask):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 10)).square().mean().backward()
        ...         optimizer.step()
        >>> model.weight.count_nonzero(), mask.kept
        (tensor(10), 10)
    """
    return Hold(model, mask)
