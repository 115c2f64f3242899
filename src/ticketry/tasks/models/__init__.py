"""Networks by name: those of pruning papers, at any width, and those of timm and torchvision.

`image_models` and `language` define the networks of papers; `ticketry.tasks.network_name` parses names. `narrower`
finds a dense network with as many parameters as a ticket, a baseline for the ticket.

Networks of timm and torchvision are untrained; nothing is ever downloaded. The library's version decides what a name
means, and is therefore part of a task's key. A transformer with a fixed image size is built for the size of the task's
images. GoogLeNet and Inception v3 are built without their auxiliary classifiers, because a task's network has one
output.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from math import ceil
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean
from ticketry.errors import MissingExtraError, TaskError, TicketryError
from ticketry.registry import digest_source
from ticketry.tasks.models.image_models import MLP, Network
from ticketry.tasks.network_name import NETWORKS, NetworkName, parse_hidden_widths, unknown_network_error
from ticketry_engine.support.process_state import private_random_state

__all__ = ["build", "check", "names", "narrower", "network_key", "parameters"]


def names() -> tuple[str, ...]:
    """Return the names of all registered networks, which are the built-in ones and those of installed plugins.

    `build` also accepts NAME@W, mlp-WIDTH…, timm:NAME, torchvision:NAME and package.module:object.
    """
    return NETWORKS.names()


def build(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a new network for inputs of `shape`, with weights drawn from torch's global random state.

    The network maps float32 [n, *shape], where `shape` is (channels, height, width), to logits [n, classes].
    """
    check(name, shape=shape)
    parsed = NetworkName.parse(name)
    if parsed.library:
        return _create_network(parsed, shape, classes)
    network = _find_registered_network(parsed, name)
    if not parsed.is_outside:
        return network.make(shape, classes, scale=parsed.scaled)
    try:
        return network.make(shape=shape, classes=classes, **({"scale": parsed.scaled} if network.scales else {}))
    except TicketryError:
        raise
    except Exception as error:  # a custom network may fail in any way
        raise TaskError(
            f"the network {name} cannot be built for inputs of {shape} and {classes} classes: {type(error).__name__}:"
            f" {error}"
        ) from error


def check(name: str, *, shape: tuple[int, int, int]) -> None:
    """Raise the errors that `build` would raise, without allocating the network.

    A network of timm or torchvision is built on the meta device, where it takes no memory."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        _check_library_network(parsed, shape)
        return
    smallest = _find_registered_network(parsed, name).smallest
    if min(shape[1:]) < smallest:
        raise TaskError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            "choose another network or task"
        )


def _find_registered_network(parsed: NetworkName, name: str) -> Network:
    if widths := parse_hidden_widths(parsed.base):
        return Network(partial(MLP, hidden=widths))
    if parsed.base not in NETWORKS.built_in and not parsed.is_outside:
        raise unknown_network_error(name)
    network = NETWORKS.get(parsed.base)
    if parsed.width != 1 and not network.scales:
        raise TaskError(f"{name}: {parsed.base} does not take `scale`, so that it has no other width: leave @ out")
    return network


def network_key(name: str) -> dict[str, str]:
    """Return the entries of a task's key (the dict that identifies stored results) that identify its network.

    The entry `model` is the canonical name. A network of timm or torchvision also has `library`, such as "timm 1.0.31",
    because the version decides what the name means. A custom network also has `source`, the digest of its source code.
    """
    parsed = NetworkName.parse(name)
    model = {"model": str(parsed)}
    if parsed.is_outside:
        return {
            **model,
            "source": digest_source(NETWORKS.find_target(parsed.base), _find_registered_network(parsed, name).make),
        }
    return {**model, "library": _library_version(parsed)} if parsed.library else model


WIDTH_STEPS = 64
"""`widest` tries widths in steps of 1/64: these include every width of a layer of at most 64 filters."""


def parameters(name: str, *, shape: tuple[int, int, int], classes: int) -> int:
    """Return the number of parameters of the network, without allocating it or drawing random numbers."""
    return _count_parameters(NetworkName.parse(name), shape, classes)


def _count_parameters(name: NetworkName, shape: tuple[int, int, int], classes: int) -> int:
    if name.library:
        _check_library_network(name, shape)
        with private_random_state([]):
            model = _create_on_meta_device(name, shape, classes)
    else:
        with torch.device("meta"):
            model = build(str(name), shape=shape, classes=classes)
    return sum(parameter.numel() for parameter in model.parameters())


def narrower(name: str, *, shape: tuple[int, int, int], classes: int, parameters: int) -> str | None:
    """Return the name of the widest variant of `name`, or `name` itself, with at most `parameters` parameters.

    A narrower variant is NAME@W, where W is a multiple of 1/64. The result is None if even the narrowest variant is too
    large, or if the network has no such variants.
    """
    parsed = NetworkName.parse(name)
    if parsed.library or not _find_registered_network(parsed, name).scales:
        return None
    return widest_network_within(parsed, lambda one: _count_parameters(one, shape, classes), parameters)


def widest_network_within(name: NetworkName, count: Callable[[NetworkName], int], parameters: int) -> str | None:
    """Return the name of the widest variant of network `name` with at most `parameters` parameters, or None.

    `count` returns the number of parameters of a variant.
    """

    def has_at_most_parameters(width: Fraction) -> bool:
        return count(NetworkName(name.base, width)) <= parameters

    if has_at_most_parameters(name.width):
        return str(name)
    # A network never has fewer parameters than a narrower one: bisection finds the last width that fits.
    few, many = 0, ceil(name.width * WIDTH_STEPS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if has_at_most_parameters(Fraction(middle, WIDTH_STEPS)) else (few, middle)
    return str(NetworkName(name.base, Fraction(few, WIDTH_STEPS))) if few else None


# -- networks of timm and torchvision ----------------------------------------------------------------------------------

_NO_AUXILIARY_OUTPUTS: dict[str, Any] = {"aux_logits": False, "init_weights": True}
_TORCHVISION_ARGUMENTS = {"googlenet": _NO_AUXILIARY_OUTPUTS, "inception_v3": _NO_AUXILIARY_OUTPUTS}
"""Additional constructor arguments, by name, of the networks that need some."""

_TRIAL_CLASSES = 3

Shape = tuple[int, int, int]


def _check_library_network(name: NetworkName, shape: Shape) -> None:
    """Raise the errors that `build` would raise, after trying the network once on the meta device."""
    known = _classifier_names_of_library(name.library)
    if name.base not in known:
        call = "timm.list_models()" if name.library == "timm" else "torchvision.models.list_models(torchvision.models)"
        raise TaskError(
            f"{name}: there is no such network in {_library_version(name)}:"
            f" {did_you_mean(name.base.partition('.')[0], known)}{call} lists them all"
        )
    if name.library == "torchvision" and shape[0] != 3:
        raise TaskError(
            f"{name}: torchvision's networks take images of 3 channels, not {shape[0]}: choose one of timm's"
        )
    _try_on_meta_device(name, shape)


def _library_version(name: NetworkName) -> str:
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


def _create_on_meta_device(name: NetworkName, shape: Shape, classes: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return _create_network(name, shape, classes)
    except NotImplementedError:  # it reads numbers out of a tensor to find its widths, as torchvision's RegNets do
        return _create_network(name, shape, classes)


@lru_cache(maxsize=256)
def _try_on_meta_device(name: NetworkName, shape: Shape) -> None:
    """Apply the network to two images on the meta device; raise `TaskError` if this fails or gives no logits."""
    try:
        with private_random_state([]):
            model = _create_on_meta_device(name, shape, _TRIAL_CLASSES).to("meta")
            outputs = model(torch.zeros(2, *shape, device="meta"))
    except NotImplementedError:
        return  # an operation that needs data: training will show
    except Exception as error:  # a library's network may fail in any way
        raise TaskError(
            f"{name} does not take images of {shape[1]}x{shape[2]} pixels and {shape[0]} channels: "
            f"{type(error).__name__}: {_first_line_of_message(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (2, _TRIAL_CLASSES):
        raise TaskError(f"{name} is no classifier: its output for n images is not [n, classes]")


def _first_line_of_message(error: Exception) -> str:
    return str(error).partition("\n")[0]


@lru_cache(maxsize=2)
def _classifier_names_of_library(library: str) -> frozenset[str]:
    module: Any = _import_library(library)
    # Classifiers only: torchvision.models defines detection and other models in modules below it.
    found = module.list_models() if library == "timm" else module.models.list_models(module=module.models)
    return frozenset(found)


def _import_library(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except Exception as error:  # what a broken installation raises can be anything
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise MissingExtraError(library, library, f"a network of {library}'s") from None
        raise TaskError(
            f"{library} is installed but cannot be imported ({type(error).__name__}: {_first_line_of_message(error)}): "
            f"install it anew; torch {torch.__version__} and torchvision must be builds that belong together"
        ) from error
