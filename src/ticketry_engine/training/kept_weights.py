"""Kept weights as parameters of their own, one row of numbers for each tensor under the mask.

Gradients and what optimisers keep are then as long as what the mask keeps. The model's tensors follow: after each step
of an optimiser they have the rows' numbers, and where they were changed themselves (by a state dict) the rows follow.
They may also follow late: kernels read rows, so that tensors wait until somebody else reads them. A tensor that takes
the place of another in the model takes over its row.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import Op, Program, Session
from ticketry_engine.kernels.training.packing import PackedCopy
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.optimizer_steps import Stepping


class Row:
    """The kept weights of a tensor, in the order in which they lie in it."""

    def __init__(self, dense: nn.Parameter, kept: Tensor) -> None:
        self.dense = dense
        self.parameter = nn.Parameter(
            torch.empty(0, dtype=torch.float32, device="cpu"), requires_grad=dense.requires_grad
        )
        self.waiting = False
        """Whether the tensor has not the row's numbers, because nobody is to read it yet."""
        self.take(kept)
        self._hook()

    def _hook(self) -> None:
        trainable = self.dense.requires_grad
        self.dense.requires_grad_(True)  # a frozen tensor takes no hook, but may be thawed
        hooks = self.dense._post_accumulate_grad_hooks
        if hooks is not None:  # of a tensor that was swapped in they are known by name, but not called
            self.dense._post_accumulate_grad_hooks = hooks
        collect = self._collect
        self._handle = self.dense.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        self.dense.requires_grad_(trainable)
        self._content = self.dense._cdata

    @torch.no_grad()
    def take(self, kept: Tensor) -> None:
        """Keep what another mask keeps, as it is in the tensor."""
        self.kept = kept
        self.places = kept.flatten().nonzero()[:, 0]
        self._seen: Array = np.empty(len(self.places), np.int32)
        self.parameter.grad = None
        self.parameter.data = self.dense.flatten()[self.places]
        self._noted()

    def _noted(self) -> None:
        self._seen[:] = self._bits()
        self._memory = self.dense.untyped_storage()  # held: its address must not be given again
        self._dense_was = self.dense._version, self.dense.data_ptr()

    def _bits(self) -> Array:
        """The row's numbers, by which a NaN is what it was. NumPy compares them in a quarter of torch's time."""
        return self.parameter.detach().numpy().view(np.int32)

    @property
    def changed(self) -> bool:
        """Whether somebody changed the row itself. By its numbers: neither ``.data`` nor fused optimisers tell it."""
        return not np.array_equal(self._bits(), self._seen)

    @property
    def moved(self) -> bool:
        """Whether the row was changed since the tensor had its numbers."""
        return self.waiting or self.changed

    def is_of(self, dense: object) -> bool:
        """Whether it is the tensor's, which has still the hook: `torch.utils.swap_tensors` leaves the object alone."""
        return dense is self.dense and self.dense._cdata == self._content

    def fits(self, dense: object) -> bool:
        """Whether its numbers have their places in a tensor."""
        kind = self.kept.shape, torch.float32, "cpu"
        return isinstance(dense, nn.Parameter) and (dense.shape, dense.dtype, dense.device.type) == kind

    def bind(self, dense: nn.Parameter) -> None:
        """Be another tensor's, which has taken the place of its own, with the numbers of that."""
        self.release()
        self.dense, self.waiting = dense, False
        self._hook()
        self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        self.parameter.copy_(self.dense.flatten()[self.places])
        self._noted()

    def read(self) -> None:
        """Take over what the tensor has, if that was changed or lies elsewhere now, and the row was not changed."""
        if (self.dense._version, self.dense.data_ptr()) != self._dense_was and not self.moved:
            self._fill()

    def wait(self) -> None:
        """The row was changed, and the tensor will be when somebody reads it. To autograd it is from now on."""
        self.waiting = True
        torch.autograd.graph.increment_version(self.dense)
        self._noted()

    @torch.no_grad()
    def write(self, session: Session, number: int) -> None:
        """Put the row's numbers into the tensor, by an operation."""
        if self.dense.is_contiguous():
            session.run(number, number + 1, [self.parameter.data_ptr(), self.dense.data_ptr()])
            if not self.waiting:
                torch.autograd.graph.increment_version(self.dense)
        else:
            dense = self.dense.data if self.waiting else self.dense
            dense.masked_scatter_(self.kept, self.parameter)
        self.waiting = False
        self._noted()

    def moved_state(self, state: dict[str, object], before: Tensor) -> None:
        """Let an optimiser's state for the row's former places be one for those of now: 0 where there was none."""
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == before.shape:
                whole = value.new_zeros(self.dense.numel())
                whole[before] = value
                state[name] = whole[self.places]

    def _collect(self, dense: Tensor) -> None:
        """Take the gradient of a call in which the layer ran in torch."""
        if dense.grad is None:
            return
        found = dense.grad.flatten()[self.places]
        dense.grad = None
        accumulate(self.parameter, found)

    def release(self) -> None:
        """Leave gradients to the tensor again."""
        self._handle.remove()


def accumulate(row: nn.Parameter, gradient: Tensor) -> None:
    """Add a gradient to that of a row, and call the row's hooks, as autograd does for parameters.

    Rows are in no graph, for another mask changes their size.
    """
    for hook in [*(row._backward_hooks or {}).values()]:
        other = hook(gradient)
        gradient = gradient if other is None else other
    row.grad = gradient if row.grad is None else row.grad + gradient
    for hook in [*(row._post_accumulate_grad_hooks or {}).values()]:
        hook(row)


class _Settling:
    """What a model calls before it gives or takes a state dict. In copies, which have no rows, it does nothing."""

    __slots__ = ("_settle",)

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._settle = settle

    def __call__(self, *_: object) -> None:
        if self._settle is not None:
            self._settle()

    def __reduce__(self) -> tuple[type[_Settling], tuple[()]]:
        return _Settling, ()


class KeptWeights:
    """Rows for some tensors of a model.

    Args:
        modules: whose weights they are, by name; some may have the same.
        masks: of each of these, its weight's tensor of the mask.
        stored: modules before whose state dicts are made or loaded rows and tensors have the same numbers.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        masks: Mapping[str, Tensor],
        library: Library,
        stored: Iterable[nn.Module] = (),
    ) -> None:
        self._library, self._modules = library, modules
        rows: dict[int, Row] = {}
        self.rows: dict[str, Row] = {}
        """By names of modules."""
        for name, kept in masks.items():
            weight = modules[name].weight
            assert isinstance(weight, nn.Parameter)
            if id(weight) not in rows:
                rows[id(weight)] = Row(weight, kept)
            self.rows[name] = rows[id(weight)]
        self._each = list(rows.values())
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.late = False
        """Whether tensors follow when they are `needed`, and not after each step."""
        self._number()
        self._link()
        self._handles: list[Stepping | RemovableHandle] = [Stepping(before=self._before_step, after=self._after_step)]
        settling = _Settling(self.settle)
        for module in stored:
            self._handles.append(module.register_state_dict_pre_hook(settling))  # type: ignore[no-untyped-call]
            self._handles.append(module.register_load_state_dict_pre_hook(settling))  # type: ignore[no-untyped-call]

    def _number(self) -> None:
        self._numbers = {id(row.dense): number for number, row in enumerate(self._each)}

    def _link(self) -> None:
        ops = [
            Op(PackedCopy(spread=True), (row.places.numpy().astype(np.int32), len(row.places), 0, 1))
            for row in self._each
        ]
        self._session = Program(ops, 1, 64, self._library, split="parts").session()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Module -> the row of its weight."""
        return {name: row.parameter for name, row in self.rows.items()}

    def take(self, modules: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
        """Keep what another mask keeps in these modules; of the optimisers that moved the rows, their state too."""
        self._modules = modules
        self.settle()
        taken: set[int] = set()
        for name, row in self.rows.items():
            if id(row) in taken:
                continue
            taken.add(id(row))
            before = row.places
            row.take(masks.get(name, torch.ones_like(row.kept)))
            for optimizer in self._optimizers:
                if row.parameter in optimizer.state:
                    row.moved_state(optimizer.state[row.parameter], before)
        self._link()

    def settle(self) -> None:
        """Let rows and tensors have the same numbers, where one of them was changed; where both were, those of rows."""
        self._follow()
        for number, row in enumerate(self._each):
            if row.moved:
                row.write(self._session, number)
            else:
                row.read()

    def begin(self) -> None:
        """A call of the model begins: as `settle`, but tensors that follow late wait until they are `needed`."""
        if not self.late:
            self.settle()
            return
        self._follow()
        for row in self._each:
            if row.changed:
                row.wait()
            else:
                row.read()

    def _follow(self) -> None:
        """Let rows be those of the tensors that their layers have now.

        Raises:
            EngineError: a layer has none of its kind any more, or tensors are tied otherwise; or one has a hook that
                waits for gradients, of which it gets none.
        """
        now = [(name, row, self._weight(name)) for name, row in self.rows.items()]
        for name, row, dense in now:
            if not row.fits(dense):
                raise EngineError(
                    f"{name or 'the model'} has no weight of {tuple(row.kept.shape)} in float32 on the CPU any more,"
                    " where kept_parameters() has those that its mask keeps: release() what trains it, make that anew"
                )
            if len(row.dense._post_accumulate_grad_hooks or ()) > 1:
                raise EngineError(
                    f"a hook waits until the weight of {name or 'the model'} has its gradient, which is the one of"
                    " kept_parameters() now: register it there (or release() what else trains the model)"
                )
        if all(row.is_of(dense) for _, row, dense in now):
            return
        pairs = {(id(row), id(dense)) for _, row, dense in now}
        if not len(pairs) == len(self._each) == len({dense for _, dense in pairs}):
            raise EngineError(
                "weights of the model that were tied are so no more, or others are (a load with assign=True unties"
                " them), where kept_parameters() has one for each: tie them again, or release() and ask anew"
            )
        for _, row, dense in now:
            if isinstance(dense, nn.Parameter) and not row.is_of(dense):
                row.bind(dense)
        self._number()

    def _weight(self, name: str) -> nn.Parameter | None:
        """What a layer has for its weight; not by `module.weight`: a parametrisation computes that."""
        return self._modules[name]._parameters.get("weight") if name in self._modules else None

    @contextmanager
    def written_late(self) -> Iterator[None]:
        """Tensors follow late meanwhile, and where state dicts are made or loaded."""
        if self.late:
            yield
            return
        self.late = True
        try:
            yield
        finally:
            self.late = False
            self.settle()

    def needed(self, tensors: Iterable[Tensor]) -> None:
        """Somebody is about to read these, some of which may be tensors of the model that have a row."""
        for tensor in tensors if self.late else ():
            number = self._numbers.get(id(tensor))
            if number is not None and self._each[number].moved:
                self._each[number].write(self._session, number)

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """What was loaded since the backward pass is what the step changes."""
        if self._stepped_by(optimizer):
            self._follow()
            for row in self._each:
                row.read()

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        for number, row in self._stepped_by(optimizer):
            self._optimizers.add(optimizer)
            if self.late:
                row.wait()
            else:
                row.write(self._session, number)

    def _stepped_by(self, optimizer: Optimizer) -> list[tuple[int, Row]]:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [(number, row) for number, row in enumerate(self._each) if id(row.parameter) in stepped]

    def release(self) -> None:
        """Let the model's tensors be the only parameters again."""
        for handle in self._handles:
            handle.remove()
        for row in self._each:
            row.release()
