"""One network, timed under many masks: captured once, compiled for each mask, in turns with the network without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.errors import EngineError
from ticketry_engine.bench.timing import Interval, median_interval, settle, warm_up
from ticketry_engine.capture import capture
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.compiled import Compiled
from ticketry_engine.example_inputs import batch_of
from ticketry_engine.ir import Graph
from ticketry_engine.ir.shape_claims import layer_name, origins, parameters_of

_LEAST_SECONDS = 0.002
"""Of what is timed at once."""


@dataclass(frozen=True)
class Effort:
    """How long latencies are sampled. A sample is the least of several, as other work makes a call only slower."""

    fewest: int
    most: int
    """Repetitions of a sample, of which no more are made after `seconds`."""
    seconds: float
    settling: float
    """Seconds of calls before a sample, in which caches fill."""
    warming: float
    """Seconds after which calls that differ by more than a tenth count as steady."""
    rounds: int
    """Turns in which a mask and the unpruned network are timed for its profile."""
    profiles: int
    """Calls that are timed layer by layer."""


THOROUGH = Effort(3, 12, 0.1, 0.25, 3.0, rounds=3, profiles=5)
QUICK = Effort(2, 5, 0.03, 0.05, 0.3, rounds=2, profiles=3)
"""Enough to choose between masks, of which the chosen one is timed again."""


@dataclass
class Profile:
    """Seconds of one call, by what spends them."""

    layers: dict[str, float]
    """Parameter name -> the layers that it is the weight of."""
    others: dict[str, float]
    """Operation -> all that have no prunable weight."""
    torch: set[str]
    """Parameters whose layers run in torch."""


@dataclass
class Meter:
    """Times a model under masks, on this machine.

    Of one thread the clock is the processor's time, so that others on the machine do not count; of several it is the
    wall's.
    """

    model: nn.Module
    example_inputs: Any
    threads: int = 1
    precision: str = "fp32"
    scope: Scope | None = None
    """Whose weights are told apart; by default `ticketry.scope(model)`."""
    effort: Effort = THOROUGH
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise EngineError(f"a call uses at least 1 thread, not {self.threads}")
        if any(parameter.device.type != "cpu" for parameter in self.model.parameters()):
            raise EngineError("the time of masks is measured on the CPU: move the model there, or ask for flops")
        self.graph = capture(self.model, None, self.example_inputs)
        self._call = Arguments.of(self.example_inputs)
        self._clock: Callable[[], float] = time.process_time if self.threads == 1 else time.perf_counter
        self._shapes = (self.scope or scope_of(self.model)).shapes
        self.names = tuple(self._shapes)

    @cached_property
    def _of(self) -> dict[str, str]:
        return origins(self.graph, self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight in scope."""
        return self._shapes[name]

    @property
    def batch(self) -> int:
        """Examples in the inputs."""
        return batch_of(tuple(tree_flatten((self._call.args, self._call.kwargs))[0]))

    def compiled(self, mask: Mask | None = None, layout: str | None = None) -> Compiled:
        """The network under a mask, in the layout that the engine chooses for it if none is given."""
        graph = self.graph
        if mask is not None:
            known = all(
                name in graph.tensors and graph.tensors[name].shape == kept.shape for name, kept in mask.items()
            )
            if known:  # what is folded into weights scales their rows, so that zeros stay where they are
                masked = {name: graph.tensors[name] * kept for name, kept in mask.items()}
                graph = replace(graph, tensors={**graph.tensors, **masked})
            else:
                graph = capture(self.model, mask, self.example_inputs)
        made = Compiled(graph, threads=self.threads, precision=self.precision, layout=layout)
        made.clock = time.thread_time  # a layer's profile is of one thread
        return made

    @cached_property
    def dense(self) -> Compiled:
        """The network without a mask."""
        return self.compiled()

    @cached_property
    def dense_seconds(self) -> float:
        """Of a call of the network without a mask."""
        run = self.runner(self.dense)
        return self._sample(run, warm_up(run, self.effort.warming))

    def runner(self, compiled: Compiled) -> Callable[[], object]:
        """A call with the example inputs."""
        return lambda: compiled(*self._call.args, **self._call.kwargs)

    def share(self, compiled: Compiled, rounds: int = 5) -> Interval:
        """Time of a call over that of the dense network's, in turns: the median, with its 95 % interval."""
        return self._in_turns(compiled, self.dense, rounds)

    def share_anew(self, mask: Mask, rounds: int) -> Interval:
        """The same of a network under a mask and of one without, both compiled anew: nothing was chosen by it."""
        return self._in_turns(self.compiled(mask), self.compiled(), rounds)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call."""
        return self._call.args, self._call.kwargs

    def ratio_to_dense(self, call: Callable[[], object], rounds: int) -> Interval:
        """Time a call of anything in turns with the unpruned compiled network; the median ratio and its interval."""
        return self._ratios(call, self.runner(self.dense), rounds)

    def _in_turns(self, compiled: Compiled, dense: Compiled, rounds: int) -> Interval:
        return self._ratios(self.runner(compiled), self.runner(dense), rounds)

    def _ratios(self, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Interval:
        own_seconds = warm_up(ours, self.effort.warming)
        warm_up(theirs, self.effort.warming)
        ratios = []
        for turn in range(rounds):
            pair = ((ours, own_seconds), (theirs, self.dense_seconds))
            taken = [self._sample(*each) for each in (pair if turn % 2 else pair[::-1])]
            one, other = taken if turn % 2 else taken[::-1]
            ratios.append(one / other)
        return median_interval(ratios)

    def _sample(self, run: Callable[[], object], usual: float) -> float:
        """Seconds of a call: the least of some, into which nobody has broken, of so many at once that a clock tells."""
        several, effort = max(1, ceil(_LEAST_SECONDS / usual)), self.effort
        found: list[float] = []
        with torch.no_grad():
            settle(run, effort.settling)
            while len(found) < effort.fewest or (len(found) < effort.most and several * sum(found) < effort.seconds):
                begin = self._clock()
                for _ in range(several):
                    run()
                found.append((self._clock() - begin) / several)
        return min(found)

    @cached_property
    def dense_profile(self) -> Profile:
        """Of the network without a mask."""
        return self._profile(self.dense, self.dense_seconds)

    def profile(self, mask: Mask, layout: str | None) -> Profile:
        """Of the network under a mask. Raises `UnsupportedError` where a layout cannot run it."""
        compiled = self.compiled(mask, layout)
        return self._profile(compiled, self.share(compiled, self.effort.rounds).median * self.dense_seconds)

    def _profile(self, compiled: Compiled, whole: float) -> Profile:
        """What each layer takes: medians on one thread, layer by layer, brought to the time of the whole call.

        Layers timed one by one take longer than the call, which keeps more in its caches and reads no clock.
        """
        taken: dict[str, list[float]] = {}
        rows: dict[str, tuple[str, str]] = {}
        for _ in range(self.effort.profiles):
            for index, row in enumerate(compiled.profile(*self._call.args, rounds=1, **self._call.kwargs)):
                if row.seconds is not None:
                    key = f"{index} {row.name}"
                    taken.setdefault(key, []).append(row.seconds)
                    rows[key] = (row.name, row.kind if row.where == "engine" else f"{row.kind} in torch")
        spent = {key: median(several) for key, several in taken.items()}
        factor = whole / max(sum(spent.values()), 1e-300)
        return self._sorted([(*rows[key], factor * seconds) for key, seconds in spent.items()], compiled)

    def _sorted(self, rows: list[tuple[str, str, float]], compiled: Compiled) -> Profile:
        by_layer = layers_by_name(self.graph, self._of)
        found = Profile(dict.fromkeys(self.names, 0.0), {}, set())
        for name, kind, spent in rows:
            parameter = by_layer.get(name)
            if parameter is None:
                found.others[kind] = found.others.get(kind, 0.0) + spent
            else:
                found.layers[parameter] += spent
                if kind.endswith(" in torch"):
                    found.torch.add(parameter)
        native = [parameters_of(node, self._of) for node in self.graph.nodes if node.output not in compiled.reasons]
        found.torch |= set(self.names).difference(*native)
        return found


def layers_by_name(graph: Graph, of: Mapping[str, str]) -> dict[str, str]:
    """Name of a layer, or of what a node makes -> the parameter that its weight is, or is made of, by `origins`."""
    found = {layer_name(name): parameter for name, parameter in of.items()}
    for node in graph.nodes:  # what runs in torch is called by its output
        for parameter in parameters_of(node, of):
            found[node.output] = parameter
    return found
