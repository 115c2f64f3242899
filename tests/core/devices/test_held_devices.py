"""A loop of one's own in two processes, held: as one process at the same global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ticketry as tk
from gloo_processes import assert_told, errors_of, run_ranks
from ticketry.core.devices import SynchronisedBatchNorm, synchronise_norms
from ticketry.core.sparse_training.gradual import Gradual
from ticketry.errors import HoldError, MaskError, TicketError, UsageError

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "asgd": partial(torch.optim.ASGD, lr=0.05),  # masked after each step
}
STEPS = 6
BATCH = 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Sequential(nn.Linear(6, 10, bias=False), nn.BatchNorm1d(10, momentum=None), nn.ReLU())
        self.out = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.inner(self.norm(self.conv(images)).relu().mean(dim=(2, 3))))


def network() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    # A unit that has lost all its inputs has the shift for its output: at 0 rounding alone would decide what ReLU does.
    nn.init.uniform_(model.norm.bias, 0.1, 0.5)
    nn.init.uniform_(model.inner[1].bias, 0.1, 0.5)
    return model


def batches(rank: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the global batch, all or every second example."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 6, 6, generator=draw, dtype=torch.float64)
        targets = torch.randint(5, (BATCH,), generator=draw)
        yield (images, targets) if rank is None else (images[rank::2], targets[rank::2])


def train(
    model: nn.Module,
    mask: tk.Mask,
    optimizer: torch.optim.Optimizer,
    rank: int | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> list[float]:
    """Norms of the gradients, which clipping has seen."""
    norms = []
    with tk.hold(model, mask) as held:
        model = wrap(model)
        for images, targets in batches(rank):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
            optimizer.step()
            held.check(optimizer)
    return norms


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}


def in_two(rank: int, folder: Path, kind: str) -> dict[str, Any]:
    found = {}
    for name, optimizer in OPTIMIZERS.items():
        model = synchronise_norms(network())
        if kind == "ddp":
            wrapped: nn.Module = DistributedDataParallel(model)
        elif kind == "held, then ddp":
            wrapped = model
        else:
            fully_shard(model.inner)
            wrapped = fully_shard(model)
        mask = tk.prune(wrapped, 0.4)
        early = {key: value.clone() for key, value in wrapped.state_dict().items()}
        wrap = {"wrap": DistributedDataParallel} if kind == "held, then ddp" else {}
        norms = train(wrapped, mask, optimizer(wrapped.parameters()), rank, **wrap)
        state = whole_state(model)
        ticket = tk.Ticket(mask, early, {"method": "one-shot"}, trained=wrapped.state_dict())
        if kind == "fsdp" or rank == 0:
            ticket.save(folder / name)
        found[name] = (mask, norms, state)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "held, then ddp", "fsdp"])
def test_as_one_process_at_the_same_global_batch(tmp_path: Path, kind: str):
    everybody = run_ranks(in_two, tmp_path, kind)
    for name, optimizer in OPTIMIZERS.items():
        model = network()
        early = {key: value.clone() for key, value in model.state_dict().items()}
        mask = tk.prune(model, 0.4)
        norms = train(model, mask, optimizer(model.parameters()))
        for theirs, their_norms, state in (found[name] for found in everybody):
            assert theirs == mask
            assert their_norms == pytest.approx(norms, abs=1e-9)
            assert list(state) == list(model.state_dict())
            for key, value in model.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=0, atol=1e-9)
            for key, kept in mask.items():
                assert not state[key][~kept].any()
        ticket = tk.Ticket.load(tmp_path / name)
        assert ticket.mask == mask
        assert all(torch.equal(ticket.start[key], value) for key, value in early.items())
        assert all(torch.equal(ticket.trained[key], value) for key, value in everybody[0][name][2].items())


def gradually(rank: int, folder: Path) -> tuple[tk.Mask, dict[str, Tensor]]:
    model = fully_shard(synchronise_norms(network()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruning = pruned_gradually(model, optimizer, rank)
    return pruning.mask, whole_state(model)


def pruned_gradually(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int | None = None) -> Gradual:
    with tk.gradual(model, 0.3, steps=STEPS, begin="1it", end="5it", frequency="1it") as pruning:
        for images, targets in batches(rank):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            pruning.step()
    return pruning


@pytest.mark.slow
def test_gradual_pruning(tmp_path: Path):
    model = network()
    pruning = pruned_gradually(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for mask, state in run_ranks(gradually, tmp_path):
        assert mask == pruning.mask
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-9)


def with_evaluations(rank: int, folder: Path) -> int:
    model = fully_shard(synchronise_norms(network()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = tk.prune(model, 0.4)
    with tk.hold(model, mask) as held:
        for images, targets in batches(rank):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            with torch.no_grad():
                model.eval()(images)
                model.train()
            held.check(optimizer)
    assert not whole_state(model)["out.weight"][~mask["out.weight"]].any()
    return mask.kept


@pytest.mark.slow
def test_evaluations_between(tmp_path: Path):
    assert run_ranks(with_evaluations, tmp_path) == [tk.prune(network(), 0.4).kept] * 2


def applied(rank: int, folder: Path) -> dict[str, Tensor]:
    model = fully_shard(Net().double())
    tk.Ticket.load(folder / "ticket").apply(model, "start")
    assert isinstance(model, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return whole_state(model)


@pytest.mark.slow
def test_a_ticket_of_one_process_is_applied_to_a_model_in_parts(tmp_path: Path):
    model = network()
    mask = tk.prune(model, 0.4)
    tk.Ticket(mask, model.state_dict(), {}).save(tmp_path / "ticket")
    mask.apply_(model)
    for state in run_ranks(applied, tmp_path):
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class Tied(nn.Module):
    """Of several types, with tied weights and a tensor without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.half = nn.Linear(3, 2).to(torch.bfloat16)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("ünï", torch.zeros(0, 2, dtype=torch.float64))


def saved(rank: int, folder: Path) -> tuple[str, bool]:
    torch.manual_seed(0)
    model = fully_shard(Tied())
    ticket = tk.Ticket(tk.prune(model, 0.5), model.state_dict(), {"seeds": [1]}, trained=model.state_dict())
    path = str(ticket.save(folder / "ticket"))
    (folder / "file").touch()
    with pytest.raises(TicketError, match="is a file: a ticket is a folder"):
        ticket.save(folder / "file")
    with pytest.raises(TicketError, match="save it, and push"):
        ticket.push("user/name")
    with pytest.raises(TicketError, match="lie in parts on several devices, and Tied does not"):
        ticket.apply(Tied())
    return path, torch.equal(ticket.apply(model, "trained").state_dict()["count"], torch.tensor(3))


@pytest.mark.slow
def test_the_bytes_are_those_of_one_process(tmp_path: Path):
    run_ranks(saved, tmp_path)
    torch.manual_seed(0)
    model = Tied()
    ticket = tk.Ticket(tk.prune(model, 0.5), model.state_dict(), {"seeds": [1]}, trained=model.state_dict())
    alone = ticket.save(tmp_path / "alone")
    files = sorted(path.name for path in alone.iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "ticket" / name).read_bytes() == (alone / name).read_bytes()


def refused(rank: int, folder: Path) -> dict[str, tuple[type, str]]:
    def held_too_early() -> None:
        model = network()
        with tk.hold(model, tk.prune(model, 0.4)):
            fully_shard(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            images, targets = next(iter(batches(rank)))
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()

    def written() -> None:
        model = fully_shard(network())
        mask = tk.prune(model, 0.4)
        with tk.hold(model, mask), torch.no_grad():
            model.out.weight.add_(1)

    def hollow() -> None:
        with torch.device("meta"):
            model = fully_shard(nn.Sequential(nn.Linear(4, 4)))
        tk.hold(model, tk.Mask({"0.weight": torch.ones(4, 4)}))

    def of_rank() -> tk.Mask:
        return tk.prune(network(), 0.4, score="random", seed=rank)

    calls = {
        "other model": lambda: tk.hold(fully_shard(network()), tk.Mask({"no.weight": torch.ones(4)})),
        "other shape": lambda: tk.hold(fully_shard(network()), tk.Mask({"out.weight": torch.ones(4)})),
        "other masks, ddp": lambda: tk.hold(DistributedDataParallel(network()), of_rank()),
        "other masks, fsdp": lambda: tk.hold(fully_shard(network()), of_rank()),
        "too early": held_too_early,
        "written": written,
        "hollow": hollow,
        "gates": lambda: tk.gates.attach(fully_shard(network())),
    }
    return errors_of(calls)


@pytest.mark.slow
def test_what_is_refused(tmp_path: Path):
    expected = {
        "other model": (MaskError, "has no parameter 'no.weight'"),
        "other shape": (MaskError, "this was made for another model"),
        "other masks, ddp": (MaskError, "hold different masks: rank 1 has another"),
        "other masks, fsdp": (MaskError, "hold different masks: rank 1 has another"),
        "too early": (HoldError, "call fully_shard first"),
        "written": (HoldError, "weights of 'out.weight' are not 0"),
        "hollow": (UsageError, "'0.weight' is on the meta device"),
        "gates": (UsageError, "'conv.weight' is sharded over several devices, and gates need whole weights"),
    }
    for found in run_ranks(refused, tmp_path):
        assert_told(found, expected)


class Activated(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_a_norm_in_several_places_is_one_afterwards_too() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm, nn.ModuleDict({"norm": norm}), nn.SyncBatchNorm(4)
    )
    state = model.state_dict(keep_vars=True)
    assert synchronise_norms(model) is model
    assert model[1] is model[3] is model[4]["norm"]
    assert type(model[1]) is type(model[5]) is SynchronisedBatchNorm
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is state[name] for name in state)
    before = model[1]
    assert synchronise_norms(model)[1] is before


def test_a_norm_with_a_forward_of_its_own_is_refused_and_nothing_replaced() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ModuleDict({"norm": Activated(4)}))
    with pytest.raises(UsageError, match=r"'2.norm' is of the class Activated, a batch norm whose own forward"):
        synchronise_norms(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_an_evaluation_needs_no_processes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 3, 6, 6)
    expected = model(images)
    assert torch.equal(synchronise_norms(model)(images), expected)


def test_a_lazy_norm_and_a_lone_norm_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has no shape yet \(a lazy layer\)"):
        synchronise_norms(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(UsageError, match="the model is a batch norm itself"):
        synchronise_norms(nn.BatchNorm1d(3))
