"""Kept weights as parameters of their own, one row of numbers for each tensor under the mask.

Gradients and what optimisers keep are then as long as what the mask keeps. The model's tensors follow: after each step
of an optimiser they have the rows' numbers, and where they were changed themselves (by a state dict) the rows follow.
They may also follow late: kernels read rows, so that tensors wait until somebody else reads them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ticketry.engine.cpu.jit import Library
from ticketry.engine.cpu.program import Op, Program, Session
from ticketry.engine.cpu.training.packing import Copy


class Row:
    """The kept weights of a tensor, in the order in which they lie in it."""

    def __init__(self, dense: nn.Parameter, kept: Tensor) -> None:
        self.dense = dense
        self.parameter = nn.Parameter(torch.empty(0), requires_grad=dense.requires_grad)
        self.waiting = False
        """Whether the tensor has not the row's numbers, because nobody is to read it yet."""
        self.take(kept)
        collect = self._collect
        self._handle = dense.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def take(self, kept: Tensor) -> None:
        """Keep what another mask keeps, as it is in the tensor."""
        self.kept = kept
        self.places = kept.flatten().nonzero()[:, 0]
        self.parameter.grad = None
        self.parameter.data = self.dense.flatten()[self.places]
        self._noted()

    def _noted(self) -> None:
        self._versions = self.parameter._version, self.dense._version

    @property
    def changed(self) -> bool:
        """Whether somebody changed the row itself, who says so (torch's fused optimisers do not)."""
        return self.parameter._version != self._versions[0]

    @property
    def moved(self) -> bool:
        """Whether the row was changed since the tensor had its numbers."""
        return self.waiting or self.changed

    @torch.no_grad()
    def read(self) -> None:
        """Take over what the tensor has, if that was changed."""
        if self.dense._version != self._versions[1]:
            self.parameter.copy_(self.dense.flatten()[self.places])
            self._noted()

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
        self.parameter.grad = found if self.parameter.grad is None else self.parameter.grad + found
        dense.grad = None

    def release(self) -> None:
        """Leave gradients to the tensor again."""
        self._handle.remove()


class KeptWeights:
    """Rows for some tensors of a model.

    Args:
        modules: whose weights they are, by name; some may have the same.
        masks: of each of these, its weight's tensor of the mask.
    """

    def __init__(self, modules: Mapping[str, nn.Module], masks: Mapping[str, Tensor], library: Library) -> None:
        self._library = library
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
        self._numbers = {id(row.dense): number for number, row in enumerate(self._each)}
        self.late = False
        """Whether tensors follow when they are `needed`, and not after each step."""
        self._link()
        self._hook = register_optimizer_step_post_hook(self._stepped)

    def _link(self) -> None:
        ops = [
            Op(Copy(spread=True), (row.places.numpy().astype(np.int32), len(row.places), 0, 1)) for row in self._each
        ]
        self._session = Program(ops, 1, 64, self._library, split="parts").session()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Module -> the row of its weight."""
        return {name: row.parameter for name, row in self.rows.items()}

    def take(self, masks: Mapping[str, Tensor]) -> None:
        """Keep what another mask keeps; of the optimisers that moved the rows, their state too."""
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
        for row in self._each:
            if row.changed:
                row.wait()
            elif not row.waiting:
                row.read()

    @contextmanager
    def written_late(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Tensors follow late meanwhile, and where one of these modules gives or takes a state dict."""
        if self.late:
            yield
            return

        def settled(*_: object) -> None:
            self.settle()

        handles = []
        for module in modules:
            handles.append(module.register_state_dict_pre_hook(settled))  # type: ignore[no-untyped-call]
            handles.append(module.register_load_state_dict_pre_hook(settled))  # type: ignore[no-untyped-call]
        self.late = True
        try:
            yield
        finally:
            self.late = False
            self.settle()
            for handle in handles:
                handle.remove()

    def needed(self, tensors: Iterable[Tensor]) -> None:
        """Somebody is about to read these, some of which may be tensors of the model that have a row."""
        for tensor in tensors if self.late else ():
            number = self._numbers.get(id(tensor))
            if number is not None and self._each[number].moved:
                self._each[number].write(self._session, number)

    def _stepped(self, optimizer: Optimizer, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for number, row in enumerate(self._each):
            if id(row.parameter) in stepped:  # torch's fused optimisers do not tell by versions what they change
                self._optimizers.add(optimizer)
                if self.late:
                    row.wait()
                else:
                    row.write(self._session, number)

    def release(self) -> None:
        """Let the model's tensors be the only parameters again."""
        self._hook.remove()
        for row in self._each:
            row.release()
