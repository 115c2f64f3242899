"""Dense engines to compare with: torch eager, channels_last, and torch.compile with freezing.

An engine is prepared for one case and then called with the case's inputs. In bf16 the weights of all three are
bfloat16; inputs come and outputs go as float32, and the conversions are part of the time, as are changes of layout.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry.engine.bench.case import Case
from ticketry.engine.onnx_file import first_line, quiet
from ticketry.errors import EngineError

Call = Callable[..., Any]
"""Takes the case's inputs, returns outputs."""


class UnavailableError(EngineError):
    """An engine that this machine or this number format does not have; the message says why, in a few words."""


class Contender(Protocol):
    """What can be timed."""

    @property
    def name(self) -> str:
        """As tables have it."""

    @property
    def sparse(self) -> bool:
        """Whether it makes use of zeros; what it saves is told against the fastest that does not."""

    @property
    def model(self) -> nn.Module | None:
        """The model that it runs, where that is not the case's: its outputs are compared with that one's."""

    def prepare(self, case: Case) -> Call:
        """Everything that is done once: compile, pack. `case` has the contender's own model, if it has one.

        Raises:
            UnavailableError: if it cannot be had here.
            EngineError: if it cannot run the model.
        """

    def versions(self) -> dict[str, str]:
        """Of the libraries that it runs on."""


class Eager:
    """torch as it is, in its default layout."""

    name: ClassVar[str] = "eager"
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None

    def prepare(self, case: Case) -> Call:
        return _ready(case, torch.contiguous_format, torch.inference_mode)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}


class ChannelsLast(Eager):
    """torch with weights and inputs in channels_last."""

    name = "channels_last"

    def prepare(self, case: Case) -> Call:
        if not _has_images(case):
            raise UnavailableError("the inputs are no images [n, c, h, w]")
        return _ready(case, torch.channels_last, torch.inference_mode)


class Compiled(Eager):
    """torch.compile: Inductor with freezing, which folds norms and packs weights; images in channels_last.

    In the default layout a ResNet-18 takes a quarter more; `max_autotune` and the C++ wrapper change nothing.
    """

    name = "compile"

    def prepare(self, case: Case) -> Call:
        if not any(shutil.which(one) for one in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if one):
            raise UnavailableError("no C++ compiler on this machine")
        layout = torch.channels_last if _has_images(case) else torch.contiguous_format
        model = _in_precision(case, layout)
        compiled: Call = torch.compile(model, fullgraph=False, dynamic=False, options={"freezing": True})
        run = _converted(compiled, case, layout, torch.no_grad)
        try:
            # Else the ninth shape of one class of modules would silently run in eager torch.
            with (
                quiet(),
                torch._dynamo.config.patch(
                    recompile_limit=1024, accumulated_recompile_limit=4096, fail_on_recompile_limit_hit=True
                ),
            ):
                run(*case.inputs)
        except Exception as error:  # of any backend
            raise EngineError(f"torch.compile failed: {type(error).__name__}: {first_line(error)}") from error
        return run


def _has_images(case: Case) -> bool:
    return any(tensor.dim() == 4 for tensor in case.tensors)


def _ready(case: Case, layout: torch.memory_format, mode: Callable[[], Any]) -> Call:
    return _converted(_in_precision(case, layout), case, layout, mode)


def _in_precision(case: Case, layout: torch.memory_format) -> nn.Module:
    """A copy of the model with weights in the case's number format and this layout."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    if case.precision == "bf16":
        model = model.to(torch.bfloat16)
    if layout == torch.channels_last:
        for value in (*model.parameters(), *model.buffers()):
            if value.dim() == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return model


def _converted(function: Call, case: Case, layout: torch.memory_format, mode: Callable[[], Any]) -> Call:
    """The call with inputs brought into format and layout, and outputs to float32."""
    half = case.precision == "bf16"

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if half and leaf.is_floating_point():
            leaf = leaf.to(torch.bfloat16)
        if layout == torch.channels_last and leaf.dim() == 4:
            leaf = leaf.contiguous(memory_format=layout)
        return leaf

    def back(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf

    def run(*inputs: Any) -> Any:
        with mode():
            return (
                tree_map(back, function(*tree_map(convert, inputs))) if half else function(*tree_map(convert, inputs))
            )

    return run


class Shrunk:
    """A dense engine on the physically smaller model of a channel-wise mask: sparse, with no sparse kernels."""

    sparse: ClassVar[bool] = True

    def __init__(self, engine: Contender, small: nn.Module, model: nn.Module | None = None) -> None:
        """`model` is the masked one, whose outputs these are to be, where that is not the case's."""
        self.name, self.model = f"{engine.name}, shrunk", model
        self._engine, self._small = engine, small

    def prepare(self, case: Case) -> Call:
        return self._engine.prepare(case.of(self._small))

    def versions(self) -> dict[str, str]:
        return self._engine.versions()


class Sparse:
    """An engine that makes use of zeros, from a function that compiles a case's model."""

    sparse: ClassVar[bool] = True

    def __init__(
        self, compile_case: Callable[[Case], Call], name: str = "ticketry", model: nn.Module | None = None
    ) -> None:
        self.name, self.model = name, model
        self._compile = compile_case
        self.compiled: Call | None = None
        """What was prepared last."""

    def prepare(self, case: Case) -> Call:
        self.compiled = self._compile(case)
        return self.compiled

    def versions(self) -> dict[str, str]:
        from ticketry.version import __version__

        return {"ticketry": __version__}
