"""Compiles a model under a mask for a GPU to an `nn.Module` for inference, which is called like the model."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ticketry_engine.capture import capture
from ticketry_engine.errors import EngineError, MissingExtraError, UsageError
from ticketry_engine.gpu.plan import LAYERS, LayerChoice, choose_kernels, layer_facts, time_on_gpu
from ticketry_engine.ir import Graph, model_file
from ticketry_engine.ir.binding import CallBinder, build_object
from ticketry_engine.layers import ForInference, describe_layer, layer_table, median_seconds, warn_of_graph_notes
from ticketry_engine.results import Layer
from ticketry_engine.support.entry_points import entry_point

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}

MOST_SHAPES = 8
"""Maximum number of input shapes whose programs and CUDA graphs are cached; the least recently used is dropped."""

Key: TypeAlias = "tuple[tuple[int, ...], ...]"

T = TypeVar("T")


@entry_point()
def compile_gpu(
    model: nn.Module,
    keep: Mapping[str, Tensor] | None = None,
    example_inputs: Any = None,
    *,
    precision: str = "bf16",
    graph: bool = True,
    device: torch.device | str | None = None,
    force: bool = False,
) -> CompiledGpu:
    """Compile a model for a GPU, with sparse kernels where groups of a weight's rows retain the same columns.

    Inputs and outputs have the model's dtypes; between layers all floating point numbers have `precision`.

    Args:
        model: any module that `torch.export` accepts. The model is not changed, and is compiled in eval mode.
        keep: mask, parameter name -> bool tensor, True = retained; applied to a copy of the model. None if the model's
            pruned weights are already zero.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments, with the batch first. Calls may
            have other batch sizes; each batch size gets a separate plan.
        precision: number format of values between layers: "bf16", "fp16", or "tf32". With "tf32", values are float32,
            and products round their factors to 10 bits of mantissa.
        graph: whether to record a CUDA graph in the first call with an input shape, and replay it in later calls.
        device: device to run on; None for the device of the model's parameters.
        force: whether to use the sparse kernels wherever they can run, even where they are estimated to be slower.

    Raises:
        EngineError: if the model cannot be captured, its parameters are on several devices, or the device has no
            kernels.
        MaskError: if the mask does not fit the model.
        MissingExtraError: if Triton is not installed.
        UsageError: if `precision` is unknown.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"the precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if example_inputs is None:
        raise EngineError("to compile a model an example of its inputs is needed: tk.compile(model, mask, inputs)")
    if find_spec("triton") is None:
        raise MissingExtraError("triton", "gpu", "sparse kernels on a GPU")
    where = check_device(_model_device(model) if device is None else torch.device(device))
    captured = capture(model, keep, example_inputs, for_kernels=False)
    warn_of_graph_notes(captured, stacklevel=3)
    return CompiledGpu(captured, where, precision=precision, record=graph, force=force)


def _model_device(model: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in model.parameters()}
    if len(devices) != 1:
        raise EngineError(f"the model's parameters are on {len(devices)} devices: move it to one, or name the device")
    return devices.pop()


def check_device(device: torch.device) -> torch.device:
    """Return `device` with an index, by default the current GPU's; raise `EngineError` if kernels do not run on it."""
    import triton

    if device.type == "cpu":
        if not triton.knobs.runtime.interpret:
            raise EngineError(
                "the GPU's kernels run on a CPU in Triton's interpreter alone, for tests: move the model to a GPU, or"
                " use tk.compile for this processor"
            )
    elif device.type != "cuda":
        raise EngineError(f"there are no sparse kernels for {device.type}: move the model to a CUDA device")
    elif str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


class CompiledGpu(ForInference):
    """A model compiled for a GPU by `compile_gpu`.

    The first call with an input shape chooses a kernel for each layer; later calls with this shape use the same choice.
    """

    def __init__(
        self, graph: Graph, device: torch.device, *, precision: str = "bf16", record: bool = True, force: bool = False
    ) -> None:
        from ticketry_engine.gpu.program import Weights  # imports Triton

        super().__init__()
        self.graph = graph
        self.device = device
        self.precision = precision
        self.stays = f"in {precision} on {device}"
        self._settings = {"precision": precision, "record": record, "force": force}
        self._record = record and device.type == "cuda"
        self._call = CallBinder(graph, device.type)
        self._facts = layer_facts(graph)
        self._weights = Weights(graph, self._facts, PRECISIONS[precision], device)
        self._runs: OrderedDict[Key, _ShapeProgram] = OrderedDict()
        self._lock = threading.Lock()
        nn.Module.train(self, False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [self._check_device_of(x) for x in self._call.bind(args, kwargs)]
        with self._lock, torch.no_grad(), computing_mode(self.device):
            return build_object(self.graph.outputs, self._run(inputs)(inputs))

    def choices(self, *args: Any, **kwargs: Any) -> dict[str, LayerChoice]:
        """Return, by name of a layer's output, the kernel that the layer would use for these inputs, and why."""
        return self._plan(self._call.bind_examples(args, kwargs))

    def layers(self) -> list[Layer]:
        """Return a row for each layer, in order, with the kernel that the layer used in the last call, and why."""
        return self._layers({})

    def profile(self, *args: Any, rounds: int = 5, **kwargs: Any) -> list[Layer]:
        """Return the rows of `layers` with the seconds of each layer: the median of `rounds` measurements.

        The GPU is synchronised after every operation. Each operation is replayed from a separate CUDA graph, because
        launching it from Python would take longer than the kernels. The inputs of an operation may still be in the
        GPU's cache. With ``graph=False``, the seconds include the launches.
        """
        inputs = [self._check_device_of(x) for x in self._call.bind_examples(args, kwargs)]
        with self._lock, torch.no_grad(), computing_mode(self.device):
            program = self._run(inputs).program
            if self._record:
                warm_up(lambda: program(inputs), self.device)
                return self._layers(program.timed(inputs, _ReplayClock(rounds)))
            clock = time_on_gpu if self.device.type == "cuda" else _time_on_wall_clock
            return self._layers(median_seconds(lambda: program.timed(inputs, clock), rounds))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a model file, as `Compiled.save` does, and return its path.

        The file holds no plans for the GPU, and loads as a model for a CPU.
        """
        return model_file.save(self.graph, Path(path))

    @property
    def weight_bytes(self) -> int:
        """Number of bytes that the weights and tables of all calls so far take on the device."""
        return self._weights.bytes

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGpu:
        return CompiledGpu(self.graph, self.device, **self._settings)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        raise EngineError("a model that was compiled for a GPU is not pickled: pickle the ticket and compile it again")

    def __repr__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        shapes = "" if not self._runs else f", inputs of {[list(shape) for shape in next(reversed(self._runs))]}"
        return layer_table(self.layers(), f"{name}, {self.precision}{shapes}", self.graph.notes)

    def _check_device_of(self, x: Tensor) -> Tensor:
        if x.device != self.device:
            raise EngineError(f"an input is on {x.device}, but the model was compiled for {self.device}")
        return x.detach()

    def _run(self, inputs: Sequence[Tensor]) -> _ShapeProgram:
        key = tuple(tuple(x.shape) for x in inputs)
        if key not in self._runs:
            from ticketry_engine.gpu.program import GpuProgram

            choices = self._plan(inputs)
            self._runs[key] = _ShapeProgram(GpuProgram(self.graph, choices, self._weights), self._record)
            while len(self._runs) > MOST_SHAPES:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        return self._runs[key]

    def _plan(self, inputs: Sequence[Tensor]) -> dict[str, LayerChoice]:
        dtype, force = self._weights.dtype, bool(self._settings["force"])
        return choose_kernels(self.graph, _batch_size(inputs), self._facts, dtype, self.device, force=force)

    def _layers(self, seconds: dict[str, float]) -> list[Layer]:
        choices = next(reversed(self._runs.values())).program.choices if self._runs else {}
        rows = []
        for node in self.graph.nodes:
            choice = choices.get(node.output)
            why = choice.why if choice is not None else "chosen at the first call" if node.op in LAYERS else ""
            sparse = choice is not None and choice.kernel != "dense"
            kernel = choice.kernel if choice is not None and sparse else ""
            kernel += f", tiles of {choice.tile} rows" if choice is not None and kernel == "group" else ""
            rows.append(describe_layer(self.graph, node, "engine" if sparse else "torch", kernel, seconds, why))
        return rows


def _batch_size(inputs: Sequence[Tensor]) -> int:
    return next((int(x.shape[0]) for x in inputs if x.dim()), 1)


class _ShapeProgram:
    """Runs a model for one input shape; if `record`, the first call records a CUDA graph, which later calls replay."""

    def __init__(self, program: Any, record: bool) -> None:
        self.program = program
        self._record = record
        self._recorded: tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Any]] | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        if not self._record:
            return self.program(inputs)  # type: ignore[no-any-return]
        if self._recorded is None:
            self._recorded = self._record_program(inputs)
        graph, static, made = self._recorded
        for held, x in zip(static, inputs, strict=True):
            held.copy_(x)
        graph.replay()
        # The next replay writes to the same memory.
        return {name: one.clone() if isinstance(one, Tensor) else one for name, one in made.items()}

    def _record_program(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Any]]:
        static = [x.clone() for x in inputs]
        warm_up(lambda: self.program(static), static[0].device)
        graph, made = record_cuda_graph(lambda: self.program(static))
        return graph, static, made


def warm_up(call: Callable[[], object], device: torch.device) -> None:
    """Call `call` three times on another stream, to compile and tune kernels and to initialise libraries."""
    stream = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def record_cuda_graph(call: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record `call` as a CUDA graph; return the graph and the call's result, which every replay overwrites."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            made = call()
    except RuntimeError as error:
        raise EngineError(
            f"a CUDA graph cannot record this model ({str(error).splitlines()[0]}): compile it with graph=False"
        ) from error
    return graph, made


class _ReplayClock:
    """Measures how many seconds a function takes, by replaying a CUDA graph of the function."""

    REPLAYS = 10

    def __init__(self, rounds: int) -> None:
        self._rounds = max(1, rounds)
        self._graphs: list[torch.cuda.CUDAGraph] = []  # later graphs read the outputs of earlier ones

    def __call__(self, call: Callable[[], T]) -> tuple[T, float]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            graph, made = record_cuda_graph(call)
        empty = [one for one in caught if "CUDA Graph is empty" in str(one.message)]
        for one in caught:
            if one not in empty:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if empty:  # a view runs no kernel
            return made, 0.0
        self._graphs.append(graph)

        def replays() -> None:
            for _ in range(self.REPLAYS):
                graph.replay()

        replays()
        return made, median(time_on_gpu(replays)[1] for _ in range(self._rounds)) / self.REPLAYS


@contextlib.contextmanager
def computing_mode(device: torch.device) -> Iterator[None]:
    """Within the block, disable autocast, multiply float32 as TF32, and make `device` the current device."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        matmul.fp32_precision = conv.fp32_precision = "tf32"
        with torch.autocast(device.type, enabled=False), current:
            yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def _time_on_wall_clock(call: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def compile_gpu_in_own_precision(
    model: nn.Module,
    mask: Mapping[str, Tensor] | None,
    example_inputs: Any,
    *,
    threads: int | None,
    target: str,
    precision: str = "fp32",
) -> CompiledGpu:
    """Call `compile_gpu` with the precision of the model's weights; float32 weights are multiplied as TF32.

    Raises:
        EngineError: if `threads` or `target`, which are settings for a CPU, are given; if weights are float64; or if
            `compile_gpu` raises it.
    """
    if threads is not None or target != "host":
        raise EngineError("threads and target apply to a CPU only: leave them out, or move the model to the CPU")
    own = precision_of(model)
    if precision not in ("fp32", own):
        raise EngineError(
            f"the model's weights are {own}: convert it, or call compile_gpu with precision={precision!r}"
        )
    return compile_gpu(model, mask, example_inputs, precision=own)


def precision_of(model: nn.Module) -> str:
    """Return the precision that most of a model's weights have: "bf16", "fp16" or "tf32" (for float32)."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    if most not in names:
        raise EngineError(
            f"there are no sparse kernels for {most} on a GPU: convert the model, or call compile_gpu with a precision"
        )
    return names[most]
