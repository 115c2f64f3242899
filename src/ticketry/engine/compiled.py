"""A model compiled for its mask: an `nn.Module` with the call of the model it was made of, for inference.

Its weights are in its kernels' tables. It has no parameters, so its `state_dict` is empty; a copy shares the graph; it
is pickled, and saved, as a model file; autocast does not change it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.engine.call import Call, build
from ticketry.engine.cpu.jit import Library
from ticketry.engine.cpu.target import Target
from ticketry.engine.cpu.target import target as find_target
from ticketry.engine.cpu.workers import cores
from ticketry.engine.graph import Graph, Node
from ticketry.engine.layers import Layer, describe, table
from ticketry.engine.ops import torch_step
from ticketry.engine.plan.kept import digest_of
from ticketry.engine.plan.partition import Region, partition
from ticketry.engine.plan.region import ITEM, Native
from ticketry.errors import EngineError

if TYPE_CHECKING:
    from ticketry.engine.gpu import CompiledGpu

Step = tuple["Native | Callable[..., Any]", tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""What runs, the values it reads, those it makes, and those nobody reads after it."""

_OfNative = Callable[[Native, list[Tensor]], list[Tensor]]
_OfOther = Callable[[Callable[..., Any], list[Tensor], str], Any]
"""Runs a step of torch, given what it reads and the name of what it makes."""


def compile(
    model: nn.Module,
    mask: Mask | None = None,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    target: str = "host",
    precision: str = "fp32",
    tune: bool = False,
) -> Compiled | CompiledGpu:
    """A module with the model's call whose sparse layers run in kernels made for the mask.

    A model on a GPU is compiled for it: `engine.gpu.compile_gpu` with the precision of the model's own weights, where
    float32 means "tf32". Call that for another precision.

    Args:
        model: any module that `torch.export` can take. It is not changed; it is compiled as in eval mode.
        mask: applied to a copy of the model; None if its pruned weights are zero already.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments, with the batch first. Calls may
            have other numbers of examples.
        threads: that a call uses; None for `torch.get_num_threads()` at each call. It never uses more than there are
            cores that the calling thread may run on.
        target: "host"; or "avx2" or "generic" for kernels that use no more than AVX2, or SSE4.2 (see `cpu.target`).
        precision: on a CPU "fp32", or "bf16": weights and values between layers rounded to bfloat16, sums in float32.
            Inputs and outputs stay float32. What gains nothing by it stays fp32: `Compiled.layers` tells.
        tune: time both layouts and several blocks on the example inputs, and keep what is fastest for their batch,
            instead of trusting the estimates. Takes seconds.

    Raises:
        EngineError: the model cannot be captured, or the processor multiplies no bfloat16.
        MaskError: the mask does not fit the model.
        MissingExtraError: llvmlite is not installed.
    """
    if any(parameter.device.type == "cuda" for parameter in model.parameters()):
        from ticketry.engine.gpu.route import compile_as_it_is

        return compile_as_it_is(model, mask, example_inputs, threads=threads, target=target, precision=precision)
    from ticketry.engine.capture import capture

    if example_inputs is None:
        raise EngineError("to compile a model an example of its inputs is needed: tk.compile(model, mask, inputs)")
    made = Compiled(capture(model, mask, example_inputs), threads=threads, target=target, precision=precision)
    if tune:
        args, kwargs = _arguments(example_inputs)
        made.tune(*args, **kwargs)
    return made


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the arguments of a call."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, target: str = "host", precision: str | None = None
) -> Compiled:
    """A model file, ready to be called. Its model's source is not needed.

    Args:
        path: what `Compiled.save` wrote.
        threads: as of `compile`, like the target.
        precision: "fp32" or "bf16"; None for that of the model which was saved. A file's weights are never rounded.

    Raises:
        EngineError: the file is damaged, of a later version or hostile, or the processor multiplies no bfloat16.
    """
    from ticketry.engine import file

    graph, meta, digest = file.load_with_digest(Path(path))
    found = str(meta.get("precision", "fp32")) if precision is None else precision
    return Compiled(graph, threads=threads, target=target, precision=found, digest=digest)


class Compiled(nn.Module):
    """A graph with everything the engine can run compiled, and the rest in torch."""

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int | None = None,
        target: str = "host",
        precision: str = "fp32",
        digest: str | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.threads = threads
        self.target = find_target(target)
        self.precision = _checked(precision, self.target)
        self._target_name = target
        self._digest = digest
        self._call = Call(graph)
        self._library = Library(self.target)
        parts = partition(graph)
        self.reasons = parts.reasons
        self._steps = [self._step(step) for step in parts.steps]
        self._finish()
        self._seconds: dict[str, float] = {}
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._call.bind(args, kwargs)
        if self._whole is not None:  # nothing for torch to do, and so no contexts to enter
            return self._whole(inputs, self._threads())[0]
        return self._run(dict(zip(self.graph.inputs, inputs, strict=True)))

    def _run(self, values: dict[str, Any]) -> Any:
        threads = self._threads()
        self._walk(values, lambda native, tensors: native(tensors, threads), lambda step, tensors, _: step(*tensors))
        return build(self.graph.outputs, values)

    def _walk(self, values: dict[str, Any], native: _OfNative, other: _OfOther) -> None:
        """Step by step, what a step makes put into `values`, and each held until its last reader is done."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for run, reads, makes, done in self._steps:
                tensors = [values[name] for name in reads]
                made = native(run, tensors) if isinstance(run, Native) else [other(run, tensors, makes[0])]
                values.update(zip(makes, made, strict=True))
                for name in done:
                    del values[name]

    def tune(self, *args: Any, **kwargs: Any) -> Compiled:
        """Time every way to run the regions on these inputs, and run batches of their size in the fastest one.

        Returns:
            The module itself.
        """
        values: dict[str, Any] = dict(zip(self.graph.inputs, self._call.bind(args, kwargs), strict=True))
        threads = self._threads()

        def tuned(native: Native, tensors: list[Tensor]) -> list[Tensor]:
            native.tune(tensors, threads)
            return native(tensors, threads)

        self._walk(values, tuned, lambda step, tensors, _: step(*tensors))
        return self

    def profile(self, *args: Any, rounds: int = 5, **kwargs: Any) -> list[Layer]:
        """`layers` with the seconds of each, of a call on one thread: the median of some rounds."""
        found: dict[str, list[float]] = {}
        inputs = self._call.bind(args, kwargs)
        self(*args, **kwargs)
        for _ in range(max(1, rounds)):
            for name, spent in self._timed(list(inputs)).items():
                found.setdefault(name, []).append(spent)
        self._seconds = {name: sorted(several)[len(several) // 2] for name, several in found.items()}
        return self.layers()

    def _timed(self, inputs: list[Tensor]) -> dict[str, float]:
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        seconds: dict[str, float] = {}

        def timed(step: Callable[..., Any], tensors: list[Tensor], name: str) -> Any:
            begin = time.perf_counter()
            made = step(*tensors)
            seconds[name] = time.perf_counter() - begin
            return made

        self._walk(values, lambda native, tensors: native.profile(tensors, seconds), timed)
        return seconds

    def layers(self) -> list[Layer]:
        """What runs, how, and why not otherwise: a row for each layer, in the order in which they run."""
        return describe(self.graph, self.reasons, self._natives, self._seconds)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a model file: it loads without the model's source. Returns its path."""
        from ticketry.engine import file

        return file.save(self.graph, Path(path), {"precision": self.precision})

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tables of all kernels of the batches that were called so far: weights and where they belong."""
        return sum(program.table_bytes for native in self._natives for program in native.programs.values())

    def train(self, mode: bool = True) -> Compiled:
        """Refuses: a compiled model is for inference."""
        if mode:
            raise EngineError("a compiled model is for inference: train the model that it was compiled from")
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Compiled:
        raise EngineError(
            "a compiled model stays in float32 on the CPU: move or convert the model before it is compiled"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(self.graph, threads=self.threads, target=self._target_name, precision=self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        from ticketry.engine import file

        return _unpickled, (file.dumps(self.graph), self.threads, self._target_name, self.precision)

    def __repr__(self) -> str:
        return table(self.layers(), self.target.name)

    def _threads(self) -> int:
        """Of a call: more than there are cores would only wait for each other."""
        threads = self.threads or torch.get_num_threads()
        return threads if threads == 1 else min(threads, cores())

    def _step(self, step: Region | Node) -> Step:
        if isinstance(step, Region):
            native = Native(self.graph, step, self._library, self._digest_of_graph, precision=self.precision)
            return native, tuple(step.inputs), tuple(step.outputs), ()
        return torch_step(self.graph, step), step.inputs, (step.output,), ()

    def _only_region(self) -> Native | None:
        """The region that is the whole network, from the call's inputs in order to its one output; None if none is."""
        if len(self._steps) != 1 or not self._natives or not isinstance(self.graph.outputs, str):
            return None
        _, reads, makes, _ = self._steps[0]
        same = reads == self.graph.inputs and makes == (self.graph.outputs,)
        return self._natives[0] if same else None

    def _digest_of_graph(self) -> str:
        """By which plans are kept: computed when the first is needed, unless a file's digest stands for it."""
        if self._digest is None:
            self._digest = digest_of(self.graph)
        return self._digest

    def _finish(self) -> None:
        """Which values nobody reads after each step."""
        kept = set(self.graph.results)
        last = {name: number for number, (_, reads, _, _) in enumerate(self._steps) for name in reads}
        for number, (run, reads, makes, _) in enumerate(self._steps):
            done = tuple(name for name in dict.fromkeys(reads) if last[name] == number and name not in kept)
            done += tuple(name for name in makes if name not in last and name not in kept)
            self._steps[number] = (run, reads, makes, done)
        self._natives = [run for run, *_ in self._steps if isinstance(run, Native)]
        self._whole = self._only_region()


def _checked(precision: str, target: Target) -> str:
    """The precision, if there are kernels in it for the target."""
    if precision not in ITEM:
        raise EngineError(f"the engine computes in {' or '.join(ITEM)}, not in {precision!r}")
    if precision == "bf16" and not target.bf16:
        raise EngineError(
            f"kernels in bf16 need a processor that multiplies bfloat16 (AVX512-BF16); the target {target.name}"
            f" ({target.cpu}) does not: compile or load with precision='fp32'"
        )
    return precision


def _unpickled(data: bytes, threads: int | None, target: str, precision: str = "fp32") -> Compiled:
    from ticketry.engine import file

    return Compiled(file.loads(data)[0], threads=threads, target=target, precision=precision)
