"""The module that `sparse_training` makes: the user's own parameters and modules, with masked layers in kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from typing_extensions import Self

from ticketry.core.mask import Mask
from ticketry.core.sparse_training.hold import Hold
from ticketry.engine.cpu.jit import Library
from ticketry.engine.cpu.target import target as find_target
from ticketry.engine.cpu.window import Array
from ticketry.engine.layers import table
from ticketry.engine.training.capture import Part, capture, traced
from ticketry.engine.training.nodes import Conv, Norm
from ticketry.engine.training.region_step import RegionStep
from ticketry.errors import EngineError
from ticketry.records.speed import Layer


def sparse_training(model: nn.Module, mask: Mask, example_inputs: Any, *, target: str = "host") -> SparseTraining:
    """A module that trains like the model under the mask, with kernels that compute only what is kept.

    It has the model's own parameters, buffers and modules under their names: optimisers, state dicts, clipping and
    checkpoints work as with the model, and what it learns is in the model. The mask is held as by `tk.hold`.

    In training mode, convolutions and linear layers under the mask (and batch norms, ReLUs, sums and pools around them)
    run in sparse kernels, forward and backward; all else runs in torch at its place. Layers that would be slower so, by
    a fixed rule of density and shape, run densely: ``print`` of the module tells. In evaluation mode, and where a norm
    is in evaluation mode, the model itself runs in torch.

        fast = tk.sparse_training(model, mask, images)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1, momentum=0.9)
        for images, labels in loader: ...                # as ever, with fast in the place of the model
        fast.update(smaller_mask)                        # a mask that moves

    Args:
        model: float32 on the CPU; `torch.fx` has to be able to trace it.
        mask: of parameters of the model.
        example_inputs: a tensor or a tuple of arguments, the batch first. Other batches may have other sizes.
        target: as of `tk.compile`.

    Raises:
        MaskError: the mask does not fit the model.
        CaptureError: the model cannot be traced.
        EngineError: it is not in float32 on the CPU.
        MissingExtraError: llvmlite is not installed.
    """
    return SparseTraining(model, mask, example_inputs, target=target)


class SparseTraining(nn.Module):
    """See `sparse_training`."""

    def __init__(self, model: nn.Module, mask: Mask, example_inputs: Any, *, target: str = "host") -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                raise EngineError(
                    f"{name} is {parameter.dtype} on {parameter.device}: sparse training computes in float32 on the CPU"
                )
        # The very dictionaries of the model: what takes a place in one takes it in the other.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._model = (model,)
        self._example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self._graphs: dict[tuple[bool, ...], fx.Graph] = {}
        self._library = Library(find_target(target))
        self._hold: Hold | None = None
        self.update(mask)
        self.train(model.training)

    def update(self, mask: Mask) -> None:
        """Hold another mask from now on. Tables are made anew at the next step, kernels only where shapes need others.

        Raises:
            MaskError: the mask does not fit the model.
        """
        model = self._model[0]
        self._graph()  # before the mask is held: a model that cannot be traced stays as it is
        held = Hold(model, mask)
        if self._hold is not None:
            self._hold.release()
        self._hold, self.mask = held, mask
        self._kept = _kept(model, mask)
        self._capture()

    def _modes(self) -> tuple[bool, ...]:
        """Which modules are in training mode: the way of a model may depend on it (functional dropout)."""
        return tuple(module.training for module in self._model[0].modules())

    def _graph(self) -> fx.Graph:
        """The model's graph in the modes that its modules have now."""
        modes = self._modes()
        if modes not in self._graphs:
            self._graphs[modes] = traced(self._model[0], self._example)
        return self._graphs[modes]

    def _capture(self) -> None:
        model = self._model[0]
        self._captured = capture(model, self._kept, self._graph())
        modules = dict(model.named_modules())
        masks = _masks(model, self.mask)
        self._steps = {
            id(step): RegionStep(step.region(), modules, self._kept, self._library, masks)
            for step in self._captured.order
            if isinstance(step, Part)
        }

    def release(self) -> None:
        """Stop holding the mask."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def train(self, mode: bool = True) -> Self:
        self._model[0].train(mode)
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        model = self._model[0]
        if not self.training:
            return model(*args, **kwargs)
        if self._captured.graph is not self._graph():
            self._capture()
        if self._frozen():
            return model(*args, **kwargs)
        return _Walk(self, args, kwargs).result()

    def _frozen(self) -> bool:
        """Whether a norm of a region uses its running statistics."""
        norms = (node.module for step in self._steps.values() for node in step.region.nodes if isinstance(node, Norm))
        return any(not self.get_submodule(name).training for name in norms)

    def layers(self) -> list[Layer]:
        """A row for each layer with weights: where it runs, its density, and why it is in torch if it is."""
        inside = {node.module for step in self._steps.values() for node in step.region.nodes if isinstance(node, Conv)}
        rows = []
        for name, module in self._model[0].named_modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            kept = self._kept.get(name)
            density = None if kept is None else float(kept.mean())
            count = None if kept is None else int(kept.sum())
            kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
            if name in inside:
                rows.append(Layer(name, kind, "engine", "sums, products", density, count, "", None, None, ""))
            else:
                why = self._captured.reasons.get(name, "called by a function, not as a module")
                rows.append(Layer(name, kind, "torch", "", density, count, "", None, None, why))
        return rows

    def __repr__(self) -> str:
        return table(self.layers(), self._library.target.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise EngineError("a module of sparse training belongs to its model: copy the model, and make another of that")

    def __reduce__(self) -> Any:
        raise EngineError("a module of sparse training is not pickled: save its state_dict, or the model")


class _Walk:
    """One forward pass, step by step."""

    def __init__(self, fast: SparseTraining, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._fast, self._captured = fast, fast._captured
        self._values: dict[fx.Node, Any] = {}
        places = [node for node in self._captured.graph.nodes if node.op == "placeholder"]
        given = dict(zip(places, args, strict=False))
        for node in places[len(args) :]:
            if node.target in kwargs:
                given[node] = kwargs[str(node.target)]
            elif node.args:
                given[node] = node.args[0]
        if len(args) > len(places) or len(given) < len(places):
            raise EngineError(f"{len(args)} arguments and {sorted(kwargs)} for {[str(node.target) for node in places]}")
        self._values.update(given)

    def result(self) -> Any:
        """What the model returns."""
        interpreter = fx.Interpreter(self._fast._model[0], garbage_collect_values=False, graph=self._captured.graph)
        for step in self._captured.order:
            if isinstance(step, Part):
                self._region(step)
            elif step.op == "output":
                return fx.node.map_arg(step.args[0], self._values.__getitem__)
            elif step.op != "placeholder":
                args, kwargs = fx.node.map_arg((step.args, step.kwargs), self._values.__getitem__)
                self._values[step] = getattr(interpreter, step.op)(step.target, args, dict(kwargs))
        raise AssertionError("a graph ends with its output")

    def _region(self, part: Part) -> None:
        step = self._fast._steps[id(part)]
        made = step([self._values[node] for node in part.inputs])
        named = dict(zip(step.region.outputs, made, strict=True))
        for node in part.outputs:
            value: Tensor = named[part.members[node]]
            flat = len(node.meta["tensor_meta"].shape) == 2
            self._values[node] = value.flatten(1) if flat else value


def _masks(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """Of every convolution and linear layer under the mask, its tensor of the mask."""
    names = {id(parameter): name for name, parameter in mask.parameters(model).items()}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return {name: mask[names[id(module.weight)]] for name, module in layers if id(module.weight) in names}


def _kept(model: nn.Module, mask: Mask) -> dict[str, Array]:
    """Of every convolution and linear layer under the mask, which weights are kept: O x I x rows x columns."""
    kept = {name: tensor.numpy() for name, tensor in _masks(model, mask).items()}
    return {
        name: np.ascontiguousarray(each.reshape(*each.shape, 1, 1) if each.ndim == 2 else each)
        for name, each in kept.items()
    }
