"""Gates on channels: against activations that are multiplied by them, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.gates.attach import ChannelGates, attach_channels
from ticketry.core.structure.channel_masks import prune_channels_by_scores
from ticketry.core.structure.removal_trial import tried_structure
from ticketry.errors import MaskError, StructureError, UsageError
from ticketry_engine.support.seeds import generator

RATIO = torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64))


class Coupled(nn.Module):
    """A stem that a shortcut passes by, a concatenation, a depthwise convolution, flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.back = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.deep, self.side = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 3, 1)
        self.mixed, self.fc = nn.Conv2d(7, 2, 3), nn.Linear(2 * 4 * 4, 3)

    def forward(self, x: Tensor, z: dict[str, Tensor] | None = None) -> Tensor:
        """With `z` every value is multiplied by its channel's gate where a layer reads it."""

        def read(value: Tensor, name: str) -> Tensor:
            return value if z is None else value * z[name].view(1, -1, 1, 1)

        stem = self.norm(self.stem(x)).relu()
        stem = stem + self.back(read(self.inner(read(stem, "stem")).relu(), "inner"))
        both = torch.cat([read(self.deep(stem).relu(), "stem"), read(self.side(read(stem, "stem")).relu(), "side")], 1)
        return self.fc(read(self.mixed(both).relu(), "mixed").flatten(1))


def made(seed: int = 0) -> tuple[Coupled, ChannelGates]:
    torch.manual_seed(seed)
    model = Coupled().double()
    structure = tried_structure(model, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    gates = attach_channels(model, structure, tk.scope(model), kind="hard-concrete", seed=7)
    with torch.no_grad():
        for s in gates.parameters():
            s.copy_(torch.randn(s.shape, dtype=s.dtype))
    return model, gates


def drawn(gates: ChannelGates, logits: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Equations 10 and 11."""
    found = {}
    for number, (name, alpha) in enumerate(logits.items()):
        u = torch.rand(alpha.shape, dtype=alpha.dtype, generator=generator(gates.seed, "gates", step, number))
        s = torch.sigmoid((u.log() - (1 - u).log() + alpha) / (2 / 3))
        found[name] = (s * 1.2 - 0.1).clamp(0, 1)
    return found


def test_as_activations_that_are_multiplied() -> None:
    """Outputs, and the gradients of gates, weights, biases and norms, also through the penalty."""
    model, gates = made()
    plain = Coupled().double()
    plain.load_state_dict(model.state_dict())
    logits = {name: s.detach().clone().requires_grad_() for name, s in gates.named_parameters()}
    assert {name: len(s) for name, s in logits.items()} == {"stem": 4, "inner": 5, "side": 3, "mixed": 2}
    x = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    gates.set_step(5)
    mine, wanted = model(x), plain(x, drawn(gates, logits, 5))
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    worth = {"stem": 5 * 9 + 3 + 2 * 9, "inner": 4 * 9, "side": 2 * 9, "mixed": 16 * 3}
    opened = sum(worth[name] * torch.sigmoid(alpha - 2 / 3 * RATIO).sum() for name, alpha in logits.items())
    charge = gates.penalty(0.01)
    torch.testing.assert_close(charge, 0.01 * opened)
    (mine.square().sum() + charge).backward()
    (wanted.square().sum() + 0.01 * opened).backward()
    for name, s in gates.named_parameters():
        torch.testing.assert_close(s.grad, logits[name].grad, rtol=1e-10, atol=1e-12)
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_without_noise_hard_and_applied() -> None:
    """Equation 13; `detach(apply=True)` leaves a plain model with the same outputs."""
    model, gates = made()
    plain = Coupled().double().eval()
    plain.load_state_dict(model.eval().state_dict())
    noise_free = {name: (torch.sigmoid(s.detach()) * 1.2 - 0.1).clamp(0, 1) for name, s in gates.named_parameters()}
    x = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    wanted = plain(x, noise_free)
    torch.testing.assert_close(model(x), wanted)
    with gates.hardened():
        torch.testing.assert_close(model(x), wanted)
    with gates.lifted():
        assert torch.equal(model(x), plain(x))
    gates.detach(apply=True)
    torch.testing.assert_close(model(x), wanted)


def test_counts_are_of_channels() -> None:
    _, gates = made()
    on = {name: int((s > RATIO).sum()) for name, s in gates.named_parameters()}
    assert gates.kept() == on
    assert gates.density() == sum(on.values()) / 14
    assert sum(gates.histogram(5).total) == 14
    assert "4 groups, 14 channels" in repr(gates)


def test_state() -> None:
    model, gates = made()
    other, more = made(seed=1)
    other.load_state_dict(model.state_dict())
    more.load_state_dict(gates.state_dict())
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(model(x), other(x))


def test_cut_by_the_logits() -> None:
    """The channels of the smallest s go, whole; of scores that fit no group it is an error."""
    model, gates = made()
    structure = tried_structure(model, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    scores = [s.detach() for s in gates.parameters()]
    mask = prune_channels_by_scores(model, structure, scores, 0.5)
    stays = {"stem": mask["stem.weight"].flatten(1).any(1), "inner": mask["inner.weight"].flatten(1).any(1)}
    least = min(float(scores[i][kept].min()) for i, kept in enumerate(stays.values()))
    assert all(bool((scores[i][~kept] <= least).all()) for i, kept in enumerate(stays.values()) if kept.sum() > 1)
    assert mask.density == pytest.approx(0.5, abs=0.1)
    with pytest.raises(MaskError, match="the groups have"):
        prune_channels_by_scores(model, structure, scores[1:], 0.5)
    with pytest.raises(MaskError, match="not all numbers"):
        prune_channels_by_scores(model, structure, [s * torch.nan for s in scores], 0.5)


def test_what_is_refused() -> None:
    model, gates = made()
    structure = tried_structure(model, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    with pytest.raises(UsageError, match="detach them first"):
        attach_channels(model, structure, tk.scope(model), kind="hard-concrete")
    with pytest.raises(UsageError, match="prune_channels_by_scores"):
        gates.harden()
    gates.detach()
    with pytest.raises(UsageError, match="init"):
        attach_channels(model, structure, tk.scope(model), kind="hard-concrete", init=1e3)
    with pytest.raises(StructureError, match="no channels"):
        attach_channels(
            model,
            structure,
            tk.scope(model, spare=("stem", "inner", "deep", "side", "mixed", "back")),
            kind="hard-concrete",
        )
