"""Choose the arithmetic of a training: device, number format, memory layout and threads."""

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
    """Holds device, number format, memory layout and threads, which affect the bits of results and are part of keys."""

    device: str = "cpu"
    """cpu or cuda."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast; weights and optimiser stay in fp32)."""
    channels_last: bool = False
    threads: int = 1
    """Number of CPU threads of each training process."""
    kernels: str = DENSE
    """dense, or the name of the sparse kernels in which steps are computed, see `lab.training.kernels`."""

    ranks: int = 1
    """Number of processes (ranks) that train a network together, each with `threads` threads or its own GPU."""
    norms: str = ""
    """With several ranks, batch norms use statistics of the whole batch (synchronised) or of the rank's part (own)."""
    parallel: str = ""
    """fsdp if every rank has a part of each parameter (`fully_shard`); empty if every rank has all parameters."""

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values for keys, without newer fields that have default values."""
        described = asdict(self)
        usual = {"kernels": DENSE, "ranks": 1, "norms": "", "parallel": ""}
        return {name: value for name, value in described.items() if name not in usual or value != usual[name]}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within a ``with`` block, set threads, determinism and flushing of denormals; other threads wait."""
        with ONE_AT_A_TIME, denormals_as_zero():
            threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
            deterministic = torch.are_deterministic_algorithms_enabled()
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.set_num_threads(self.threads)
            torch.backends.cudnn.benchmark = False
            if self.device == "cuda":
                memory: Any = torch.utils.deterministic  # type checkers do not see the properties of this module
                filled = memory.fill_uninitialized_memory
                torch.use_deterministic_algorithms(True, warn_only=True)
                # Memory is written before it is read; filling it would take as long as the computation.
                memory.fill_uninitialized_memory = False
            try:
                yield
            finally:
                torch.set_num_threads(threads)
                torch.backends.cudnn.benchmark = benchmark
                if self.device == "cuda":  # only here, since the call imports the compiler, which takes seconds
                    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
                    memory.fill_uninitialized_memory = filled

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return an autocast context for one forward pass; use it once only, because it caches converted weights."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device and memory layout of this arithmetic, and return it."""
        model = model.to(self.device)
        if not self.channels_last or self.kernels != DENSE:
            return model
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def non_default_choices(
    *, precision: str, threads: int = 1, devices: int = 1, norms: str = SYNCHRONISED, parallel: str = DDP
) -> dict[str, Any]:
    """Return the settings that differ from fp32, one thread, one device, synchronised norms and ddp."""
    usual = {"precision": "fp32", "threads": 1, "devices": 1, "norms": SYNCHRONISED, "parallel": DDP}
    told = {"precision": precision, "threads": threads, "devices": devices}
    told |= {"norms": norms, "parallel": parallel} if devices > 1 else {}
    return {name: word for name, word in told.items() if word != usual[name]}


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Within a ``with`` block, treat numbers below 1.2e-38 (denormal numbers) as zero in this thread, if possible.

    Gates (soft masks) near 0 become that small, and a denormal number costs Intel processors a hundred cycles. Ordinary
    weights do not change by this, so keys do not mention it.
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
    """Choose device, number format and memory layout for a model; nothing is timed for this choice.

    With ``device="auto"``, a GPU is used if there is one. With ``precision="auto"``, convolutional networks train in
    bfloat16 if the processor has instructions for it (AVX-512 BF16, AMX, or a GPU of compute capability 8); other
    networks train in fp32. Two-dimensional convolutions use the memory layout channels_last.
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
    if (place, precision) == ("cpu", "fp32") and any(map(_may_crash_in_channels_last, model.modules())):
        channels_last = False
    if in_parts:
        channels_last = False  # fully_shard splits the memory of weights along their first dimension
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


def _may_crash_in_channels_last(module: nn.Module) -> bool:
    """Return whether torch may crash in this layer's backward pass in fp32 on a CPU with channels_last.

    The crash was seen with torch 2.13 and AVX-512, for a 1x1 convolution with stride 2 and 8 input channels on at least
    48x48 pixels. Layers with fewer than 16 channels gain little by channels_last.
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
