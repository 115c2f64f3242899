"""`prune` of a model in parts: the mask of one process, to the element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import ticketry as tk
from gloo_processes import assert_told, errors_of, run_ranks
from ticketry.errors import LayerCollapseError, MaskError, UsageError


def network(dtype: torch.dtype = torch.float32, *, ties: bool = False) -> nn.Sequential:
    """Layers that two and three processes cannot share evenly, one of a single row."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 16, 13), nn.Linear(13, 5), nn.Linear(5, 1)]
    return rounded(nn.Sequential(*layers).to(dtype), ties)


def rounded(model: nn.Sequential, ties: bool) -> nn.Sequential:
    if ties:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 8)
    return model


REQUESTS: dict[str, dict[str, Any]] = {
    "global": {"density": 0.2},
    "all": {"density": 1.0},
    "layerwise": {"density": 0.31, "distribution": "layerwise"},
    "uniform": {"density": 0.31, "distribution": "uniform"},
    "erk": {"density": 0.4, "distribution": "erk"},
    "at least": {"density": 0.05, "keep_at_least": 3},
    "collapse": {"density": 0.01, "collapse": "keep"},
    "half rate": {"density": 0.3, "half_rate": ("5.weight",)},
    "scope": {"density": 0.3, "scope": "biases", "collapse": "keep"},
}
MODELS: dict[str, dict[str, Any]] = {
    "float32": {},
    "ties": {"ties": True},
    "float64": {"dtype": torch.float64},
    "float64 ties": {"dtype": torch.float64, "ties": True},
    "bfloat16": {"dtype": torch.bfloat16},
}


def asked(model: nn.Module, request: dict[str, Any], **more: Any) -> tk.Mask | str:
    request = request | more
    if request.get("scope"):
        request["scope"] = tk.scope(model, biases=True)
    return tk.prune(model, **request)


def masks(model: nn.Module) -> dict[str, tk.Mask]:
    """By request, each also going on from a mask."""
    found = {name: asked(model, request) for name, request in REQUESTS.items()}
    for name, request in REQUESTS.items():
        if name not in ("all", "half rate"):
            first = asked(model, request, density=0.6)
            found[f"{name}, within"] = asked(model, request, within=first)
    return found


def even_network(dtype: torch.dtype = torch.float32, *, ties: bool = False) -> nn.Sequential:
    """fully_shard splits by columns only where they can be shared evenly."""
    torch.manual_seed(3)
    return rounded(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 16), nn.Linear(16, 4)).to(dtype), ties)


def columns(parameter: nn.Parameter) -> Shard:
    return Shard(min(1, parameter.dim() - 1))


def pruned_in_parts(rank: int, folder: Path, ranks: int) -> dict[str, dict[str, tk.Mask]]:
    found = {}
    for name, options in MODELS.items():
        model = network(**options)
        for child in (model[3], model):
            fully_shard(child)
        found[name] = masks(model)
        if ranks != 3:
            columned = fully_shard(even_network(**options), shard_placement_fn=columns)
            found[f"{name}, columns"] = {"global": asked(columned, {"density": 0.4})}
        if ranks % 2 == 0:
            mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("replicas", "parts"))
            hybrid = fully_shard(network(**options), mesh=mesh)
            found[f"{name}, hybrid"] = {"global": asked(hybrid, REQUESTS["global"])}
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.slow
def test_the_mask_of_one_process(tmp_path: Path, ranks: int):
    everybody = run_ranks(pruned_in_parts, tmp_path, ranks, ranks=ranks)
    for name, options in MODELS.items():
        alone = masks(network(**options))
        assert len(alone) == 16
        for found in everybody:
            assert found[name] == alone
            assert ranks == 3 or found[f"{name}, columns"]["global"] == asked(even_network(**options), {"density": 0.4})
            assert ranks % 2 or found[f"{name}, hybrid"]["global"] == alone["global"]
            assert {kind for kind in alone if list(found[name][kind]) != list(alone[kind])} == set()


def test_ties_are_many():
    weights = torch.cat([each.flatten() for each in network(ties=True).parameters()]).abs()
    assert len(weights.unique()) < 12


def after_an_evaluation(rank: int, folder: Path) -> tk.Mask:
    model = fully_shard(network())
    with torch.no_grad():
        model(torch.randn(2, 3, 6, 6))  # leaves the parameters of the outermost module whole
    return tk.prune(model, 0.2)


@pytest.mark.slow
def test_after_an_evaluation(tmp_path: Path):
    assert run_ranks(after_an_evaluation, tmp_path) == [tk.prune(network(), 0.2)] * 2


def refused(rank: int, folder: Path) -> dict[str, tuple[type, str]]:
    model = fully_shard(network())
    loss = {"loss": lambda model, batch: model(batch).sum(), "batches": [torch.randn(2, 3, 6, 6)]}
    with torch.device("meta"):
        hollow = fully_shard(nn.Sequential(nn.Linear(4, 4)))
    damaged = fully_shard(network())
    with torch.no_grad():
        damaged[3].weight.to_local()[:rank] = float("nan")  # in rank 1
    normed = fully_shard(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))))
    calls = {
        "score": lambda: tk.prune(model, 0.2, score="snip", **loss),
        "pattern": lambda: tk.prune(model, 0.2, pattern="4x1"),
        "iterations": lambda: tk.prune(model, 0.2, iterations=2),
        "collapse": lambda: tk.prune(model, 0.001),
        "enough": lambda: tk.prune(model, 0.5, within=tk.prune(model, 0.2)),
        "within": lambda: tk.prune(model, 0.5, scope=tk.scope(model), within=tk.Mask({"0.weight": torch.ones(2)})),
        "half_rate": lambda: tk.prune(model, 0.5, half_rate=("no.weight",)),
        "distribution": lambda: tk.prune(model, 0.5, distribution="even"),
        "meta": lambda: tk.prune(hollow, 0.2),
        "nan": lambda: tk.prune(damaged, 0.2),
        "computed": lambda: tk.prune(normed, 0.2, scope=tk.scope(normed, include="*original1")),
    }
    return errors_of(calls)


@pytest.mark.slow
def test_what_is_refused(tmp_path: Path):
    first, second = run_ranks(refused, tmp_path)
    assert first == second  # one process alone would wait for the other
    expected = {
        "score": (UsageError, "scores other than magnitude are not supported"),
        "pattern": (UsageError, "the pattern 4x1 is not supported"),
        "iterations": (UsageError, "several iterations are not supported"),
        "collapse": (LayerCollapseError, "would leave no weight in 0.weight, 3.weight, 4.weight (layer collapse)"),
        "enough": (MaskError, "ask for at most 0.2"),
        "within": (MaskError, "not of the tensors that have scores"),
        "half_rate": (UsageError, "half_rate names 'no.weight'"),
        "distribution": (UsageError, "even"),
        "meta": (UsageError, "'0.weight' is on the meta device"),
        "nan": (MaskError, "the scores of '3.weight' are not all numbers"),
        "computed": (UsageError, "layers that compute their weights"),
    }
    assert_told(first, expected)
