"""Build untrained networks of timm and torchvision by name; nothing is ever downloaded.

The library's version decides what a name means, and is therefore part of a task's key. A transformer with a fixed image
size is built for the size of the task's images. GoogLeNet and Inception v3 are built without their auxiliary
classifiers, because a task's network has one output.
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

_NO_AUXILIARY_OUTPUTS: dict[str, Any] = {"aux_logits": False, "init_weights": True}
_TORCHVISION_ARGUMENTS = {"googlenet": _NO_AUXILIARY_OUTPUTS, "inception_v3": _NO_AUXILIARY_OUTPUTS}
"""Additional constructor arguments, by name, of the networks that need some."""

_TRIAL_CLASSES = 3

Shape = tuple[int, int, int]


def build(name: NetworkName, *, shape: Shape, classes: int) -> nn.Module:
    """Return the network with new weights, drawn from torch's global random state.

    Raises:
        TaskError: for an unknown network, or if it does not take inputs of `shape` = (channels, height, width).
        MissingExtraError: if the library is not installed.
    """
    check(name, shape=shape)
    return _create_network(name, shape, classes)


def check(name: NetworkName, *, shape: Shape) -> None:
    """Raise the errors that `build` would raise; each process tries a network once, on the meta device."""
    known = _classifier_names(name.library)
    if name.base not in known:
        raise TaskError(
            f"{name}: there is no such network in {version(name)}: {did_you_mean(name.base.partition('.')[0], known)}"
            f"{_listing_call(name.library)} lists them all"
        )
    if name.library == "torchvision" and shape[0] != 3:
        raise TaskError(
            f"{name}: torchvision's networks take images of 3 channels, not {shape[0]}: choose one of timm's"
        )
    _try_without_data(name, shape)


def parameters(name: NetworkName, *, shape: Shape, classes: int) -> int:
    """Return the number of parameters, counted on the meta device if possible; raise the errors of `build`."""
    check(name, shape=shape)
    with private_random_state([]):
        model = _create_without_memory(name, shape, classes)
    return sum(parameter.numel() for parameter in model.parameters())


def version(name: NetworkName) -> str:
    """Return the name and version of the network's library, without a local suffix such as +cpu."""
    return f"{name.library} {str(_import_library(name.library).__version__).partition('+')[0]}"


def _create_network(name: NetworkName, shape: Shape, classes: int) -> nn.Module:
    library: Any = _import_library(name.library)
    model: nn.Module
    if name.library == "timm":
        config = library.get_pretrained_cfg(name.base)
        size = {"img_size": shape[1:]} if config is not None and config.fixed_input_size else {}
        model = library.create_model(name.base, pretrained=False, in_chans=shape[0], num_classes=classes, **size)
    else:
        arguments = dict(_TORCHVISION_ARGUMENTS.get(name.base, {}))
        if name.base.startswith("vit_"):
            arguments["image_size"] = shape[1]
        model = library.models.get_model(name.base, weights=None, num_classes=classes, **arguments)
    return model


def _create_without_memory(name: NetworkName, shape: Shape, classes: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return _create_network(name, shape, classes)
    except NotImplementedError:  # it reads numbers out of a tensor to find its widths, as torchvision's RegNets do
        return _create_network(name, shape, classes)


@lru_cache(maxsize=256)
def _try_without_data(name: NetworkName, shape: Shape) -> None:
    """Build the network on the meta device and apply it to two images.

    Raises:
        TaskError: if the network cannot be built or applied, or if its outputs are not logits.
    """
    try:
        with private_random_state([]):
            model = _create_without_memory(name, shape, _TRIAL_CLASSES).to("meta")
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
def _classifier_names(library: str) -> frozenset[str]:
    module: Any = _import_library(library)
    # Classifiers only: torchvision.models defines detection and other models in modules below it.
    found = module.list_models() if library == "timm" else module.models.list_models(module=module.models)
    return frozenset(found)


def _listing_call(library: str) -> str:
    return "timm.list_models()" if library == "timm" else "torchvision.models.list_models(torchvision.models)"


def _import_library(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except Exception as error:  # what a broken installation raises can be anything
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise MissingExtraError(library, library, f"a network of {library}'s") from None
        raise TaskError(
            f"{library} is installed but cannot be imported ({type(error).__name__}: {_first_line(error)}): "
            f"install it anew; torch {torch.__version__} and torchvision must be builds that belong together"
        ) from error
