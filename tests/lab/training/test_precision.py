"""The arithmetic is chosen by a fixed rule and put back afterwards."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ticketry.errors import UsageError
from ticketry.lab.training import precision
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic, denormals_as_zero
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe

DENSE = nn.Sequential(nn.Linear(4, 4))
IMAGES = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
SOUND = nn.Sequential(nn.Conv1d(3, 4, 3))


@pytest.fixture
def machine(monkeypatch):
    """``machine(cuda=..., bf16=...)`` pretends to be one."""

    def pretend(*, cuda: bool, bf16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(precision, "_has_bf16", lambda device: bf16)

    return pretend


@pytest.mark.parametrize(
    ("model", "bf16", "words", "wanted"),
    [
        (DENSE, True, {}, ("cpu", "fp32", False, 1)),
        (IMAGES, True, {}, ("cpu", "bf16", True, 1)),
        (IMAGES, False, {}, ("cpu", "fp32", True, 1)),
        (SOUND, True, {}, ("cpu", "bf16", False, 1)),
        (DENSE, False, {"precision": "bf16"}, ("cpu", "bf16", False, 1)),
        (IMAGES, True, {"precision": "fp32", "threads": 3}, ("cpu", "fp32", True, 3)),
    ],
)
def test_the_rule_on_a_cpu(machine, model, bf16, words, wanted):
    machine(cuda=False, bf16=bf16)
    assert astuple(choose_arithmetic(model, **words)) == (*wanted, "dense", 1, "", "")
    assert astuple(choose_arithmetic(model, device="cpu", **words)) == (*wanted, "dense", 1, "", "")


@pytest.mark.parametrize("words", [{"precision": "fp16"}, {"device": "tpu"}, {"precision": ""}])
def test_unknown_words(words):
    with pytest.raises(UsageError, match="is not known: auto, "):
        choose_arithmetic(DENSE, **words)


def test_a_gpu_that_is_not_there(machine):
    machine(cuda=False, bf16=False)
    with pytest.raises(UsageError, match="torch sees no GPU here: use cpu or auto"):
        choose_arithmetic(DENSE, device="cuda")


def _settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        _denormals_are_zero(),
    )


def _denormals_are_zero():
    return float(torch.tensor(1e-38) / 10) == 0


@pytest.mark.parametrize("strict", [(False, False), (True, True)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_are_put_back(strict, device):
    """Also after an error, and also those that a user has chosen."""
    before = _settings()
    torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
    chosen = _settings()
    other = 2 if torch.get_num_threads() == 1 else 1
    try:
        active = Arithmetic(device, threads=other).active()
        active.__enter__()
        assert torch.get_num_threads() == other
        assert _denormals_are_zero()
        assert torch.are_deterministic_algorithms_enabled() == (strict[0] or device == "cuda")
        assert torch.utils.deterministic.fill_uninitialized_memory == (device != "cuda")
        error = ZeroDivisionError()
        assert not active.__exit__(type(error), error, None), "errors pass"
        assert _settings() == chosen
    finally:
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_what_they_were_afterwards(before):
    torch.set_flush_denormal(before)
    try:
        with denormals_as_zero():
            assert _denormals_are_zero()
        assert _denormals_are_zero() == before
    finally:
        torch.set_flush_denormal(False)


def _denormal_moments(optimizer):
    """By their bits, for arithmetic may take them as zero: an exponent of 0 with a fraction."""
    bits = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()]).view(torch.int32)
    return int(((bits & 0x7F800000 == 0) & (bits & 0x007FFFFF != 0)).sum())


@pytest.mark.slow
def test_moments_that_have_died_out_change_no_weight(tmp_path, monkeypatch):
    """The same weights to the bit, with moments that decay to denormal numbers and with such that end at zero."""
    from ticketry.lab.lab import Lab

    def trained(name):
        found = []
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: found.append(_denormal_moments(optimizer)))
        try:
            with Lab(tmp_path / name) as lab:
                recipe = Recipe(optimizer="adam", lr=1e-2, length="1300it")
                segment = lab.segment(catalogue.get("digits"), start=0, recipe=recipe)
                return lab.store.get_tensors(lab.train(segment).model), found[-1]
        finally:
            hook.remove()

    weights, none = trained("as zero")
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)
    others, some = trained("as they are")
    assert none == 0 < some
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_bf16_is_autocast_only():
    arithmetic = Arithmetic(precision="bf16", channels_last=True)
    model = arithmetic.place(nn.Conv2d(3, 4, 3))
    with arithmetic.autocast():
        out = model(torch.randn(2, 3, 8, 8))
    assert out.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    with Arithmetic().autocast():
        assert model(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_a_layer_in_which_torch_crashes_keeps_the_plain_layout() -> None:
    narrow = catalogue.get("cifar10", model="resnet-20-8").build()
    assert not choose_arithmetic(narrow, device="cpu", precision="fp32").channels_last
    assert choose_arithmetic(narrow, device="cpu", precision="bf16").channels_last
    assert choose_arithmetic(catalogue.get("cifar10").build(), device="cpu", precision="fp32").channels_last


def test_running_statistics_of_a_channel_that_nothing_feeds_end_at_zero():
    """Rounding would keep them four steps above it, by which the weights' file has another digest."""
    least = torch.finfo(torch.float32).smallest_normal * 2**-23

    def ended() -> float:
        norm = nn.BatchNorm2d(1)
        for _ in range(1500):
            norm(torch.zeros(2, 1, 1, 1))
        assert norm.running_var is not None
        return norm.running_var.item()

    assert ended() == 4 * least
    with denormals_as_zero():
        assert ended() == 0
