"""Networks of timm and torchvision by name, untrained; nothing is ever downloaded.

What such a name means is decided by the library's version, which is therefore part of a task's key. A transformer for
images of a fixed size is made for those of the task. The auxiliary classifiers of torchvision's GoogLeNet and
Inception v3 are left out: a task's network has one output.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean
from ticketry.errors import MissingExtraError, TaskError
from ticketry.tasks.network_name import NetworkName
from ticketry_engine.support.process_state import private_random_state

_WITHOUT_AUXILIARIES: dict[str, Any] = {"aux_logits": False, "init_weights": True}
_TORCHVISION = {"googlenet": _WITHOUT_AUXILIARIES, "inception_v3": _WITHOUT_AUXILIARIES}
"""Arguments of single networks."""

_TRIAL_CLASSES = 3

Shape = tuple[int, int, int]


def build(name: NetworkName, *, shape: Shape, classes: int) -> nn.Module:
    """The network with new weights, drawn from torch's global random state.

    Raises:
        TaskError: if there is no such network, or it does not take inputs of `shape` = (channels, height, width).
        MissingExtraError: if the library is not installed.
    """
    check(name, shape=shape)
    return _make(name, shape, classes)


def check(name: NetworkName, *, shape: Shape) -> None:
    """Raise what `build` would raise. The network is tried out, once a process, without memory for its weights."""
    known = _names(name.library)
    if name.base not in known:
        raise TaskError(
            f"{name}: there is no such network in {version(name)}: {did_you_mean(name.base.partition('.')[0], known)}"
            f"{_all_names(name.library)} lists them all"
        )
    if name.library == "torchvision" and shape[0] != 3:
        raise TaskError(
            f"{name}: torchvision's networks take images of 3 channels, not {shape[0]}: choose one of timm's"
        )
    _try(name, shape)


def parameters(name: NetworkName, *, shape: Shape, classes: int) -> int:
    """The number of parameters, without memory for them where the network can be made so. Raises what `build` does."""
    check(name, shape=shape)
    with private_random_state([]):
        model = _unallocated(name, shape, classes)
    return sum(parameter.numel() for parameter in model.parameters())


def version(name: NetworkName) -> str:
    """Return the library and its version, without a build suffix after a plus sign."""
    return f"{name.library} {str(_library(name.library).__version__).partition('+')[0]}"


def _make(name: NetworkName, shape: Shape, classes: int) -> nn.Module:
    library: Any = _library(name.library)
    model: nn.Module
    if name.library == "timm":
        config = library.get_pretrained_cfg(name.base)
        size = {"img_size": shape[1:]} if config is not None and config.fixed_input_size else {}
        model = library.create_model(name.base, pretrained=False, in_chans=shape[0], num_classes=classes, **size)
    else:
        arguments = dict(_TORCHVISION.get(name.base, {}))
        if name.base.startswith("vit_"):
            arguments["image_size"] = shape[1]
        model = library.models.get_model(name.base, weights=None, num_classes=classes, **arguments)
    return model


def _unallocated(name: NetworkName, shape: Shape, classes: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return _make(name, shape, classes)
    except NotImplementedError:  # it reads numbers out of a tensor to find its widths, as torchvision's RegNets do
        return _make(name, shape, classes)


@lru_cache(maxsize=256)
def _try(name: NetworkName, shape: Shape) -> None:
    """Make the network and give it two images, on the device that has no data.

    Raises:
        TaskError: if either fails, or the outputs are not logits.
    """
    try:
        with private_random_state([]):
            model = _unallocated(name, shape, _TRIAL_CLASSES).to("meta")
            outputs = model(torch.zeros(2, *shape, device="meta"))
    except NotImplementedError:
        return  # an operation that needs data: training will show
    except Exception as error:  # a library's network may fail in any way
        raise TaskError(
            f"{name} does not take images of {shape[1]}x{shape[2]} pixels and {shape[0]} channels: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (2, _TRIAL_CLASSES):
        raise TaskError(f"{name} is no classifier: its output for n images is not [n, classes]")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


@lru_cache(maxsize=2)
def _names(library: str) -> frozenset[str]:
    module: Any = _library(library)
    # Classifiers only: torchvision.models defines detection and other models in modules below it.
    found = module.list_models() if library == "timm" else module.models.list_models(module=module.models)
    return frozenset(found)


def _all_names(library: str) -> str:
    return "timm.list_models()" if library == "timm" else "torchvision.models.list_models(torchvision.models)"


def _library(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except Exception as error:  # what a broken installation raises can be anything
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise MissingExtraError(library, library, f"a network of {library}'s") from None
        raise TaskError(
            f"{library} is installed but cannot be imported ({type(error).__name__}: {_first_line(error)}): "
            f"install it anew; torch {torch.__version__} and torchvision must be builds that belong together"
        ) from error
