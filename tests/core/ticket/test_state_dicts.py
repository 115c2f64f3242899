"""Whatever puts weights back gives a class its version, which a plain mapping of tensors does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.ticket.state_dicts import load_state, mask_state
from ticketry.errors import TicketError
from ticketry.lab.costs.meters import measure_step
from ticketry.lab.training.state import copy_state, rebuild_model


class Versioned(nn.Linear):
    """Like torchvision's MNASNet, it refuses a state without a version; like torch's norms, it converts an old one."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *others: Any) -> None:
        version = local.get("version")
        if version is None:
            raise ValueError("version should be set to 1 or 2 instead of None")
        if version == 1:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, local, *others)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Sequential(Versioned(4, 3)))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("change", ["lacks", "has"])
def test_another_network_is_told(change: str) -> None:
    state = dict(network().state_dict())
    if change == "lacks":
        del state["0.weight"]
    else:
        state["1.weight"] = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"0\.weight" if change == "lacks" else r"1\.weight"):
        load_state(network(), state)


@pytest.mark.parametrize("wrap", [None, nn.DataParallel, torch.compile], ids=["bare", "parallel", "compiled"])
def test_a_ticket_is_applied(tmp_path, wrap) -> None:
    model = network()
    mask = tk.prune(model, 0.5)
    trained = mask.apply_(network(1)).state_dict()
    folder = tk.Ticket(mask, model.state_dict(), {"method": "none"}, trained=trained).save(tmp_path / "ticket")
    for which, seed in (("start", 0), ("trained", 1)):
        again = network(2)
        tk.Ticket.load(folder).apply(wrap(again) if wrap else again, which)
        assert same(again, mask.apply_(network(seed)))


def test_the_lab_builds_it_again() -> None:
    class Points(tk.Task):
        def build(self) -> nn.Module:
            return network()

    model = network(1)
    assert same(rebuild_model(Points(), copy_state(model)), model)


def test_a_step_is_measured() -> None:
    model = network()
    before, x = network(), torch.randn(6, 5)

    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return network(batch).square().mean()

    measure_step(model, loss, x, torch.optim.SGD(model.parameters(), lr=0.1), repeats=1)
    assert same(model, before)


_DTYPES = (
    "bool uint8 int8 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz int16 uint16 float16 bfloat16 int32"
    " uint32 float32 int64 uint64 float64 complex64 complex128"
)


@pytest.mark.parametrize("name", _DTYPES.split())
def test_removed_weights_of_any_data_type_are_zero(name: str) -> None:
    """Bit by bit; and so are those of a tied tensor."""
    dtype = getattr(torch, name)
    raw = torch.randint(*((0, 2) if name == "bool" else (1, 127)), (6, 5 * dtype.itemsize), dtype=torch.uint8)
    kept = torch.rand(6, 5) > 0.5
    state = {
        "w": raw.clone().view(dtype),
        "tied": raw.clone().view(dtype),
        "other": raw.flip(0).contiguous().view(dtype),
    }
    made = mask_state(state, tk.Mask({"w": kept}))
    wanted = raw * kept.repeat_interleave(dtype.itemsize, 1)
    assert torch.equal(made["w"].view(torch.uint8), wanted)
    assert torch.equal(made["tied"].view(torch.uint8), wanted)
    assert torch.equal(made["other"].view(torch.uint8), raw.flip(0))


def test_a_data_type_without_zero_is_told() -> None:
    weight = torch.ones(4, 4, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    with pytest.raises(TicketError, match=r"'w' is of torch\.float8_e8m0fnu, which has no 0"):
        mask_state({"w": weight}, tk.Mask({"w": torch.eye(4) > 0}))
    mask_state({"w": weight}, tk.Mask({"w": torch.ones(4, 4) > 0}))
