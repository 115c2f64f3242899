"""Packed weights: the retained weights of each tensor under the mask form a separate parameter, a vector named row.

Gradients and optimiser states are then as small as the mask. After each optimiser step, rows are written to the
model's tensors. If a tensor itself was changed, for example by a state dict, its weights are copied to its row. With
deferred writing, rows are written only when code other than the kernels is about to read the tensors. If a tensor
is replaced by another, the row is bound to the new tensor.
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
from ticketry_engine.kernels.program import Op, Program, ProgramSession
from ticketry_engine.kernels.training.layer import PackedCopy
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.training_hooks import Stepping


class PackedWeight:
    """A parameter (a vector) that holds the retained weights of a tensor, in the order of the tensor's elements."""

    def __init__(self, dense: nn.Parameter, kept: Tensor) -> None:
        self.dense = dense
        self.parameter = nn.Parameter(
            torch.empty(0, dtype=torch.float32, device="cpu"), requires_grad=dense.requires_grad
        )
        self.waiting = False
        """Whether writing the row to the tensor is deferred."""
        self.adopt_mask(kept)
        self._add_hook()

    def _add_hook(self) -> None:
        trainable = self.dense.requires_grad
        self.dense.requires_grad_(True)  # a frozen tensor accepts no hook, but may be unfrozen later
        hooks = self.dense._post_accumulate_grad_hooks
        if hooks is not None:  # torch does not call the hooks of a tensor that was swapped in until they are set again
            self.dense._post_accumulate_grad_hooks = hooks
        collect = self._collect_gradient
        self._handle = self.dense.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        self.dense.requires_grad_(trainable)
        self._content = self.dense._cdata

    @torch.no_grad()
    def adopt_mask(self, kept: Tensor) -> None:
        """Use the mask `kept` from now on; copy the weights that it retains from the dense tensor to this vector."""
        self.kept = kept
        self.places = kept.flatten().nonzero()[:, 0]
        self._seen: Array = np.empty(len(self.places), np.int32)
        self.parameter.grad = None
        self.parameter.data = self.dense.flatten()[self.places]
        self._record_state()

    def _record_state(self) -> None:
        """Record the current state of this vector and of the dense tensor, to detect later changes."""
        self._seen[:] = self._values_as_integers()
        self._memory = self.dense.untyped_storage()  # a reference, so that its address is not reused
        self._dense_was = self.dense._version, self.dense.data_ptr()

    def _values_as_integers(self) -> Array:
        """Return the bits of this vector as integers, which are fast to compare, and in which a NaN equals itself."""
        return self.parameter.detach().numpy().view(np.int32)

    @property
    def was_changed(self) -> bool:
        """Whether this vector was changed since `_record_state` was last called."""
        # Numbers are compared, because ``.data`` and fused optimisers do not increase a tensor's version.
        return not np.array_equal(self._values_as_integers(), self._seen)

    @property
    def needs_write_back(self) -> bool:
        """Whether this vector was changed since it was last written to the dense tensor."""
        return self.waiting or self.was_changed

    def belongs_to(self, dense: object) -> bool:
        """Return whether this vector holds weights of `dense`.

        The result is False if `torch.utils.swap_tensors` exchanged the content of `dense`.
        """
        return dense is self.dense and self.dense._cdata == self._content

    def fits(self, dense: object) -> bool:
        """Return whether a tensor has the shape, dtype and device for which this vector was made."""
        kind = self.kept.shape, torch.float32, "cpu"
        return isinstance(dense, nn.Parameter) and (dense.shape, dense.dtype, dense.device.type) == kind

    def bind_to(self, dense: nn.Parameter) -> None:
        """Use `dense`, which replaced the old dense tensor, from now on; copy its retained weights to this vector."""
        self.release()
        self.dense, self.waiting = dense, False
        self._add_hook()
        self._copy_from_tensor()

    @torch.no_grad()
    def _copy_from_tensor(self) -> None:
        self.parameter.copy_(self.dense.flatten()[self.places])
        self._record_state()

    def copy_changed_tensor(self) -> None:
        """If the dense tensor was changed or moved, and this vector was not, copy the retained weights to it."""
        if (self.dense._version, self.dense.data_ptr()) != self._dense_was and not self.needs_write_back:
            self._copy_from_tensor()

    def defer_write(self) -> None:
        """Postpone writing this vector to the dense tensor, which autograd treats as changed from now on."""
        self.waiting = True
        torch.autograd.graph.increment_version(self.dense)
        self._record_state()

    @torch.no_grad()
    def write(self, session: ProgramSession, number: int) -> None:
        """Write this vector to the dense tensor by running operation `number` of the session's program."""
        if self.dense.is_contiguous():
            session.run(number, number + 1, [self.parameter.data_ptr(), self.dense.data_ptr()])
            if not self.waiting:
                torch.autograd.graph.increment_version(self.dense)
        else:
            dense = self.dense.data if self.waiting else self.dense
            dense.masked_scatter_(self.kept, self.parameter)
        self.waiting = False
        self._record_state()

    def move_state(self, state: dict[str, object], before: Tensor) -> None:
        """Convert optimiser state from the old mask to the current one; weights that were pruned before get 0.

        `before` holds the positions in the dense tensor of the weights that the old mask retained.
        """
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == before.shape:
                whole = value.new_zeros(self.dense.numel())
                whole[before] = value
                state[name] = whole[self.places]

    def _collect_gradient(self, dense: Tensor) -> None:
        """After a pass in which the layer ran in torch, move the gradient of the dense tensor to this vector."""
        if dense.grad is None:
            return
        found = dense.grad.flatten()[self.places]
        dense.grad = None
        accumulate_gradient(self.parameter, found)

    def release(self) -> None:
        """Remove the hook that moves gradients to this vector, so that gradients stay in the dense tensor."""
        self._handle.remove()


def accumulate_gradient(row: nn.Parameter, gradient: Tensor) -> None:
    """Add `gradient` to the gradient of `row`, and call the hooks of `row`, as autograd does for parameters."""
    # Rows are not part of autograd graphs, because their sizes change with the mask.
    for hook in [*(row._backward_hooks or {}).values()]:
        other = hook(gradient)
        gradient = gradient if other is None else other
    row.grad = gradient if row.grad is None else row.grad + gradient
    for hook in [*(row._post_accumulate_grad_hooks or {}).values()]:
        hook(row)


class _SettleHook:
    """A hook that calls the function `settle` before a state dict is saved or loaded.

    It does nothing in copies of the model.
    """

    __slots__ = ("_settle",)

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._settle = settle

    def __call__(self, *_: object) -> None:
        if self._settle is not None:
            self._settle()

    def __reduce__(self) -> tuple[type[_SettleHook], tuple[()]]:
        return _SettleHook, ()


class PackedWeights:
    """The vectors of retained weights of a model, which are trained instead of the dense tensors.

    Args:
        modules: the layers, by name; several layers may share a weight.
        masks: name of a layer -> bool tensor, True where a weight is retained.
        stored: modules whose tensors are updated from the vectors before their state dict is saved or loaded.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        masks: Mapping[str, Tensor],
        library: Library,
        stored: Iterable[nn.Module] = (),
    ) -> None:
        self._library, self._modules = library, modules
        rows: dict[int, PackedWeight] = {}
        self.rows: dict[str, PackedWeight] = {}
        """Layer -> the row of its weight."""
        for name, kept in masks.items():
            weight = modules[name].weight
            assert isinstance(weight, nn.Parameter)
            if id(weight) not in rows:
                rows[id(weight)] = PackedWeight(weight, kept)
            self.rows[name] = rows[id(weight)]
        self._each = list(rows.values())
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.writes_late = False
        """Whether tensors are written only by `update_tensors`, and not after each step."""
        self._number_rows()
        self._build_copy_program()
        self._handles: list[Stepping | RemovableHandle] = [
            Stepping(before=self._copy_loaded_weights, after=self._write_stepped_rows)
        ]
        settling = _SettleHook(self.synchronise)
        for module in stored:
            self._handles.append(module.register_state_dict_pre_hook(settling))  # type: ignore[no-untyped-call]
            self._handles.append(module.register_load_state_dict_pre_hook(settling))  # type: ignore[no-untyped-call]

    def _number_rows(self) -> None:
        self._numbers = {id(row.dense): number for number, row in enumerate(self._each)}

    def _build_copy_program(self) -> None:
        ops = [
            Op(PackedCopy(spread=True), (row.places.numpy().astype(np.int32), len(row.places), 0, 1))
            for row in self._each
        ]
        self._session = Program(ops, 1, 64, self._library, split="parts").open_session()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name of a layer -> the parameter that holds the layer's retained weights."""
        return {name: row.parameter for name, row in self.rows.items()}

    def adopt_mask(self, modules: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
        """Use another mask, and convert the states of the optimisers that train the vectors."""
        self._modules = modules
        self.synchronise()
        first = {row: name for name, row in reversed(self.rows.items())}
        for row, name in first.items():
            before = row.places
            row.adopt_mask(masks.get(name, torch.ones_like(row.kept)))
            for optimizer in self._optimizers:
                if row.parameter in optimizer.state:
                    row.move_state(optimizer.state[row.parameter], before)
        self._build_copy_program()

    def synchronise(self) -> None:
        """Write changed vectors to their dense tensors; then copy changed dense tensors to unchanged vectors."""
        self._bind_to_replaced_tensors()
        for number, row in enumerate(self._each):
            if row.needs_write_back:
                row.write(self._session, number)
            else:
                row.copy_changed_tensor()

    def prepare_call(self) -> None:
        """Before a call of the model, update vectors and dense tensors from each other (`synchronise`).

        If writing to dense tensors is deferred, update only the vectors.
        """
        if not self.writes_late:
            self.synchronise()
            return
        self._bind_to_replaced_tensors()
        for row in self._each:
            if row.was_changed:
                row.defer_write()
            else:
                row.copy_changed_tensor()

    def _bind_to_replaced_tensors(self) -> None:
        """Bind each vector to the tensor that its layer has now; raise `EngineError` if that is impossible."""
        now = [(name, row, self._weight_parameter(name)) for name, row in self.rows.items()]
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
        if all(row.belongs_to(dense) for _, row, dense in now):
            return
        pairs = {(id(row), id(dense)) for _, row, dense in now}
        if not len(pairs) == len(self._each) == len({dense for _, dense in pairs}):
            raise EngineError(
                "weights of the model that were tied are so no more, or others are (a load with assign=True unties"
                " them), where kept_parameters() has one for each: tie them again, or release() and ask anew"
            )
        for _, row, dense in now:
            if isinstance(dense, nn.Parameter) and not row.belongs_to(dense):
                row.bind_to(dense)
        self._number_rows()

    def _weight_parameter(self, name: str) -> nn.Parameter | None:
        """Return a layer's weight, without computing a parametrisation; None if the layer has no such parameter."""
        return self._modules[name]._parameters.get("weight") if name in self._modules else None

    @contextmanager
    def defer_tensor_writes(self) -> Iterator[None]:
        """Within the block, do not write vectors to dense tensors, except before a state dict is saved or loaded."""
        if self.writes_late:
            yield
            return
        self.writes_late = True
        try:
            yield
        finally:
            self.writes_late = False
            self.synchronise()

    def update_tensors(self, tensors: Iterable[Tensor]) -> None:
        """For each of `tensors` that has a packed vector, write the vector to the tensor if this write was deferred."""
        for tensor in tensors if self.writes_late else ():
            number = self._numbers.get(id(tensor))
            if number is not None and self._each[number].needs_write_back:
                self._each[number].write(self._session, number)

    def _copy_loaded_weights(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Before an optimiser step, copy to the vectors what was loaded into dense tensors since the backward pass."""
        if self._rows_stepped_by(optimizer):
            self._bind_to_replaced_tensors()
            for row in self._each:
                row.copy_changed_tensor()

    def _write_stepped_rows(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        for number, row in self._rows_stepped_by(optimizer):
            self._optimizers.add(optimizer)
            if self.writes_late:
                row.defer_write()
            else:
                row.write(self._session, number)

    def _rows_stepped_by(self, optimizer: Optimizer) -> list[tuple[int, PackedWeight]]:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [(number, row) for number, row in enumerate(self._each) if id(row.parameter) in stepped]

    def release(self) -> None:
        """Remove all hooks, so that the model's tensors are the only parameters again."""
        for handle in self._handles:
            handle.remove()
        for row in self._each:
            row.release()
