"""What a network takes by a profile of a machine: planned for it under masks, and not timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn
from torch.utils._pytree import tree_flatten

from ticketry.core.costs.cost_model import CostModel
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.engine.cost.families import Family
from ticketry.engine.cost.machine_profile import MachineProfile
from ticketry.engine.cost.meter import Profile, layers_by_name
from ticketry.engine.cost.planned import planned, torch_work
from ticketry_engine.capture import capture
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.example_inputs import batch_of
from ticketry_engine.ir import Graph
from ticketry_engine.ir.shape_claims import origins, parameters_of

_OF_MACHINE = ("processor", "processor_kind", "vectors", "threads", "precision")
"""Facts of a profile that its estimates tell too; older ones do not know all."""


class Estimator(ABC):
    """Tells what a network takes by a profile, as `Meter` does by timing it: a `Timer` of `engine.cost.measured`."""

    upsampling = True
    """As `engine.capture.capture` has it."""

    def __init__(self, model: nn.Module, example_inputs: Any, scope: Scope | None = None) -> None:
        """Raises EngineError if the model cannot be captured."""
        self.model = model
        self.graph = capture(model, None, example_inputs, upsampling=self.upsampling)
        call = Arguments.of(example_inputs)
        self.batch = batch_of(tuple(tree_flatten((call.args, call.kwargs))[0]))
        self._shapes = (scope or scope_of(model)).shapes
        self.names = tuple(self._shapes)
        self._inputs = example_inputs

    @abstractmethod
    def about(self, family: Family) -> dict[str, object]:
        """What a cost model says of where it comes from."""

    @abstractmethod
    def _estimated(self, graph: Graph, layout: str | None) -> Profile:
        """Of a call of a graph. Raises `UnsupportedError` where the layout cannot run it."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight in scope."""
        return self._shapes[name]

    @cached_property
    def dense_profile(self) -> Profile:
        """Seconds of the network without a mask, by what spends them."""
        return self._estimated(self.graph, None)

    @property
    def dense_seconds(self) -> float:
        """Of a call of the network without a mask."""
        return _total(self.dense_profile)

    def profile(self, mask: Mask, layout: str | None) -> Profile:
        """Seconds of the network under a mask. Raises `UnsupportedError` where a layout cannot run it."""
        tensors = self.graph.tensors
        if all(name in tensors and tensors[name].shape == kept.shape for name, kept in mask.items()):
            masked = {name: tensors[name] * kept for name, kept in mask.items()}
            graph = replace(self.graph, tensors={**tensors, **masked})
        else:
            graph = capture(self.model, mask, self._inputs, upsampling=self.upsampling)
        return self._estimated(graph, layout)

    def seconds(self, mask: Mask) -> float:
        """Of the network under this mask itself, in the layout that the engine would choose."""
        return _total(self.profile(mask, None))


class ProcessorEstimator(Estimator):
    """By the profile of a processor."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, profile: MachineProfile, scope: Scope | None = None
    ) -> None:
        """Raises EngineError if the model cannot be captured."""
        super().__init__(model, example_inputs, scope)
        self.machine = profile

    def about(self, family: Family) -> dict[str, object]:
        """What a cost model says of where it comes from."""
        machine = self.machine
        return {
            "target": str(machine.about["processor"]),
            **{fact: machine.about[fact] for fact in _OF_MACHINE if fact in machine.about},
            "batch": self.batch,
            "how": "estimated by a profile of the machine",
            "masks": family.about,
            "profile": machine.digest[:16],
        }

    def _estimated(self, graph: Graph, layout: str | None) -> Profile:
        machine = self.machine
        found = planned(graph, self.batch, machine.target, machine.levels, str(machine.about["precision"]), layout)
        by_layer = layers_by_name(self.graph, origins(self.graph, self._shapes))
        spent = Profile(dict.fromkeys(self.names, 0.0), {"call": machine.call * max(1, found.regions)}, set())
        for work in found.works:
            seconds, parameter = machine.seconds(work), by_layer.get(work.label)
            if parameter is None:
                spent.others[work.kind] = spent.others.get(work.kind, 0.0) + seconds
            else:
                spent.layers[parameter] += seconds
        of = origins(graph, self._shapes)
        for node in found.torch:
            work_done = torch_work(graph, node, self.batch)
            seconds = sum(machine.torch[name] * value for name, value in work_done.items())
            parameters = parameters_of(node, of)
            for name in parameters:
                spent.layers[name] += seconds / len(parameters)
                spent.torch.add(name)
            if not parameters:
                kind = f"{node.op} in torch"
                spent.others[kind] = spent.others.get(kind, 0.0) + seconds
        native = [parameters_of(node, of) for node in graph.nodes if node not in found.torch]
        spent.torch |= set(self.names).difference(*native)
        return spent


def with_spread(costs: CostModel, spread: float) -> CostModel:
    """The costs with what a profile says of its estimates."""
    return CostModel(costs.unit, costs.layers, costs.fixed, spread, costs.about, costs.fixed_parts)


def _total(profile: Profile) -> float:
    return sum(profile.layers.values()) + sum(profile.others.values())
