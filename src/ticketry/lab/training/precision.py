"""Which number format and memory layout a network is trained in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ticketry.choices import check_choice
from ticketry.errors import UsageError
from ticketry_engine.support.process_state import ONE_AT_A_TIME

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
DENSE = "dense"
SYNCHRONISED, OWN = "synchronised", "own"
NORMS = (SYNCHRONISED, OWN)
DDP, FSDP = "ddp", "fsdp"
PARALLEL = (DDP, FSDP)


@dataclass(frozen=True)
class Arithmetic:
    """Device type, number format, memory layout and CPU threads: part of a segment's key, for they decide its bits."""

    device: str = "cpu"
    """cpu or cuda."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast: weights and optimiser stay fp32)."""
    channels_last: bool = False
    threads: int = 1
    """Of one segment on a CPU, whatever runs it and whatever else runs."""
    kernels: str = DENSE
    """dense, or which sparse kernels a step under a mask runs in, see `lab.training.kernels`."""

    ranks: int = 1
    """Processes that train one network together (`--devices`), each with so many threads, or with a GPU of its own."""
    norms: str = ""
    """What batch norms of several ranks see: synchronised, the whole batch; own, each rank its part of it."""
    parallel: str = ""
    """fsdp: each of several ranks has a part of every parameter (`fully_shard`); else they have all of it."""

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values, for keys; dense kernels and one rank are what there was before others came, and add
        nothing."""
        described = asdict(self)
        usual = {"kernels": DENSE, "ranks": 1, "norms": "", "parallel": ""}
        return {name: value for name, value in described.items() if name not in usual or value != usual[name]}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The thread count, deterministic kernels and denormals as zero, for the length of a block, of which there is
        one at a time."""
        with ONE_AT_A_TIME, denormals_as_zero():
            threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
            deterministic = torch.are_deterministic_algorithms_enabled()
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.set_num_threads(self.threads)
            torch.backends.cudnn.benchmark = False
            if self.device == "cuda":
                memory: Any = torch.utils.deterministic  # a module with properties, which type checkers do not see
                filled = memory.fill_uninitialized_memory
                torch.use_deterministic_algorithms(True, warn_only=True)
                # What is allocated is written before it is read: to fill it too would take as long as to compute it.
                memory.fill_uninitialized_memory = False
            try:
                yield
            finally:
                torch.set_num_threads(threads)
                torch.backends.cudnn.benchmark = benchmark
                if self.device == "cuda":  # it imports the compiler, which takes seconds: not where nothing was changed
                    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
                    memory.fill_uninitialized_memory = filled

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around one forward pass. A new one each step: inside it the converted weights are cached."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory layout; sparse kernels read weights as they lie in plain tensors."""
        model = model.to(self.device)
        if not self.channels_last or self.kernels != DENSE:
            return model
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def unusual(
    *, precision: str, threads: int = 1, devices: int = 1, norms: str = SYNCHRONISED, parallel: str = DDP
) -> dict[str, Any]:
    """What of the choices is no usual one, so that a run's name tells it: nothing for fp32 in one thread on one device.

    Of device and kernels names say nothing: the words stand for what a machine has.
    """
    usual = {"precision": "fp32", "threads": 1, "devices": 1, "norms": SYNCHRONISED, "parallel": DDP}
    told = {"precision": precision, "threads": threads, "devices": devices}
    told |= {"norms": norms, "parallel": parallel} if devices > 1 else {}
    return {name: word for name, word in told.items() if word != usual[name]}


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1.2e-38 count as zero in this thread, as far as the processor can do that.

    A gate that an earlier round has closed is that small, and so is what it multiplies; the moments of a weight without
    a gradient (of a unit that is off) shrink by a tenth a step until they are, and stay there. Intel's processors then
    take a hundred cycles for each. A weight of ordinary size is the same to the bit with them or without, so no key
    names it.
    """
    tiny = torch.tensor(torch.finfo(torch.float32).tiny, device="cpu")
    before = not bool(tiny / 2)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def choose_arithmetic(
    model: nn.Module,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    ranks: int = 1,
    norms: str = SYNCHRONISED,
    parallel: str = DDP,
) -> Arithmetic:
    """The arithmetic for a model, by a fixed rule on what the processor can do, never by a timing.

    A GPU is used where there is one. Convolutional networks train in bfloat16 where the processor has instructions
    for it (AVX-512 BF16, AMX, or a GPU of compute capability 8), with channels_last; that halves a step. Networks
    without convolutions are small enough for the conversions to cost more, and train in fp32.

    Raises:
        UsageError: for an unknown word, or a device that is not there.
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("device", device, DEVICES)
    check_choice("norms", norms, NORMS)
    check_choice("parallel", parallel, PARALLEL)
    in_parts = ranks > 1 and parallel == FSDP
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("device cuda was asked for, but torch sees no GPU here: use cpu or auto")
    place = "cuda" if device != "cpu" and has_cuda else "cpu"
    convolutional = any(isinstance(module, _ConvNd) for module in model.modules())
    if precision == "auto":
        precision = "bf16" if convolutional and _has_bf16(place) else "fp32"
    channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if (place, precision) == ("cpu", "fp32") and any(map(_crashes, model.modules())):
        channels_last = False
    if in_parts:
        channels_last = False  # fully_shard cuts weights along their first dimension, as they lie in memory
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    return Arithmetic(
        place,
        precision,
        channels_last,
        threads,
        ranks=ranks,
        norms=norms if ranks > 1 and has_norms else "",
        parallel=FSDP if in_parts else "",
    )


def _crashes(module: nn.Module) -> bool:
    """Whether torch may crash in this layer's backward pass with channels_last in fp32 on a CPU.

    Seen with torch 2.13 and AVX-512: a 1x1 convolution with stride 2 and 8 input channels, over 48x48 pixels or more,
    ends the process with a segmentation fault. Layers with fewer than 16 channels gain little by the layout anyway.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 16
    )


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
