"""Captured graphs kept in the user's cache, without their weights: capturing takes up to seconds, reading milliseconds.

They are found by `model_key.key_of` and a digest of the sources that capture, and trusted as far as plans are.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticketry.core.scope import normal_name
from ticketry_engine.capture.keeping.model_key import key_of
from ticketry_engine.capture.tracing.program import Multiple, Sizes
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.ir import Graph, Json, model_file
from ticketry_engine.ir.aten import is_portable
from ticketry_engine.ir.memory import plain
from ticketry_engine.kept_files import digest_of_files, folder, keep, kept

_log = logging.getLogger(__name__)

_Captured = tuple[Graph, Mapping[str, Sizes]]


def kept_or(capture: Callable[[], _Captured], model: nn.Module, arguments: Arguments, *more: object) -> _Captured:
    """What was kept of an equal model, with this one's weights; else what `capture` makes, which is kept if it can be.

    Args:
        model: in the mode, and with the weights, that it is captured with.
        more: what the capture depends on besides.
    """
    try:
        key = key_of(model, (arguments.args, arguments.kwargs), *more)
    except Exception as reason:  # objects that the model's code names, or seems to, may do anything when they are read
        _log.info("the capture of %s is not kept: %s: %s", type(model).__name__, type(reason).__name__, reason)
        return capture()
    path = _path(key)
    weights = _weights(model)
    data = kept(path)
    if data is not None:
        return _read(data, weights)
    graph, sizes = capture()
    if _is_complete(graph, weights):
        keep(path, _written(graph, sizes))
    return graph, sizes


def _path(key: str) -> Path:
    name = hashlib.blake2b(f"{_sources()} {key}".encode(), digest_size=16).hexdigest()
    return folder("captures") / f"{name}.json"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {normal_name(name): tensor.detach() for name, tensor in named}


def _is_complete(graph: Graph, weights: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of a graph are weights of the model, and all operations are of those that stay."""
    own = {name: weights.get(name) for name in graph.tensors}
    same = all(one is not None and one.data_ptr() == graph.tensors[name].data_ptr() for name, one in own.items())
    return same and all(one.native or is_portable(one.op) for one in graph.nodes)


def _written(graph: Graph, sizes: Mapping[str, Sizes]) -> bytes:
    document = {
        "graph": model_file.to_json(graph),
        "tensors": list(graph.tensors),
        "sizes": {name: [_size_written(size) for size in found] for name, found in sizes.items()},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _size_written(size: int | Multiple | None) -> Json:
    return {"of batch": size.of_batch} if isinstance(size, Multiple) else size


def _read(data: bytes, weights: Mapping[str, Tensor]) -> _Captured:
    document: dict[str, Any] = json.loads(data)
    tensors = {name: plain(weights[name], f"the weight {name!r}") for name in document["tensors"]}
    sizes: dict[str, Sizes] = {name: tuple(map(_size_read, found)) for name, found in document["sizes"].items()}
    return model_file.from_json(document["graph"], tensors), sizes


def _size_read(size: Json) -> int | Multiple | None:
    return Multiple(size["of batch"]) if isinstance(size, dict) else size


@functools.cache
def _sources() -> str:
    """A digest of what captures and what a graph is, so that nothing made by others than these is used."""
    here = Path(__file__).parent.parent
    return digest_of_files([*here.rglob("*.py"), *(here.parent / "graph").glob("*.py")])
