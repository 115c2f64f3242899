"""What callbacks of all trainers have in common, without a trainer."""

from __future__ import annotations

import importlib
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

import ticketry as tk
from ticketry.core.gates import KINDS
from ticketry.errors import HoldError, MaskError, MissingExtraError, TicketryError, UsageError
from ticketry.integrations.jobs import (
    GatesJob,
    GradualJob,
    HoldJob,
    Job,
    check_training_setup,
    read_state,
    write_state,
)
from ticketry_engine.support.files import append_digest


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def gating(**settings: object) -> GatesJob:
    penalty, optimizer = settings.pop("penalty", 1e-3), settings.pop("optimizer", None)
    return GatesJob(penalty, optimizer, {"init": 0.1, "seed": 3, **settings})  # type: ignore[arg-type,typeddict-item]


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_that_of_the_loss(kind: str, within: bool, pattern: str) -> None:
    """Gradients of loss + penalty on one side; on the other the job's, which come after the loss's own."""
    mask = tk.prune(network(), density=0.5, pattern=pattern) if within else None
    inputs, coefficient = torch.randn(4, 5), 0.3
    plain = network()
    gates = tk.gates.attach(plain, init=0.1, kind=kind, within=mask, pattern=pattern, seed=3)
    gates.anneal(0.25)
    gates.set_step(5)
    (plain(inputs).square().mean() + gates.penalty(coefficient)).backward()

    model = network()
    by = partial(torch.optim.SGD, lr=1.0)
    job = gating(kind=kind, within=mask, penalty=coefficient, optimizer=by, pattern=pattern)
    job.start(model, total=20)
    job.before_step(5)
    before = {name: s.detach().clone() for name, s in job.gates.named_parameters()}
    model(inputs).square().mean().backward()
    job.before_update(None)
    for name, logits in gates.named_parameters():
        moved = before[name] - dict(job.gates.named_parameters())[name].detach()
        torch.testing.assert_close(moved, logits.grad, rtol=1e-5, atol=1e-6)
    assert all(s.grad is None for s in job.gates.parameters())
    one, other = (dict(each.named_parameters()) for each in (plain, model))
    assert all(torch.equal(one[name].grad, other[name].grad) for name in one)


def test_a_scaler_is_undone_and_skips_what_is_not_finite() -> None:
    for inf in (False, True):
        moved = []
        for scale in (1.0, 4096.0):
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            model, job = network(), gating(optimizer=partial(torch.optim.SGD, lr=1.0))
            job.start(model, total=10)
            job.before_step(0)
            loss = model(torch.ones(2, 5)).square().mean() * (float("inf") if inf else 1)
            scaler.scale(loss).backward()
            job.before_update(scaler)
            moved.append([s.detach().clone() for s in job.gates.parameters()])
        for one, other in zip(*moved, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
            assert bool((one == 0.1).all()) == inf


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu")], ids=["plain", "scaled"])
def test_a_step_without_a_loss_moves_nothing(scaler: torch.amp.GradScaler | None) -> None:
    job = gating()
    job.start(network(), total=10)
    job.before_update(scaler)
    assert all(bool((s == s.new_tensor(0.1)).all()) for s in job.gates.parameters())


def test_states_go_through_a_file(tmp_path: Path) -> None:
    model, job = network(), gating(optimizer=partial(torch.optim.AdamW, lr=0.1, betas=(0.8, 0.9)))
    job.start(model, total=10)
    for step in range(3):
        job.before_step(step)
        model(torch.ones(2, 5)).sum().backward()
        job.before_update(None)
    write_state(tmp_path / "new" / "state.safetensors", job.state())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state.safetensors"]
    again = gating(optimizer=partial(torch.optim.AdamW, lr=0.1, betas=(0.8, 0.9)))
    again.load(read_state(tmp_path / "new" / "state.safetensors"))  # before training begins, as Lightning does
    job.release()
    again.start(model, total=10)
    _require_equal(again.state(), job.state())
    assert again.gates.progress == job.gates.progress == 0.2


def _require_equal(one: object, other: object) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            _require_equal(value, other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    elif isinstance(one, list | tuple):
        for mine, theirs in zip(one, other, strict=True):  # type: ignore[call-overload]
            _require_equal(mine, theirs)
    else:
        assert one == other


def test_files_that_are_no_state(tmp_path: Path) -> None:
    with pytest.raises(TicketryError, match=r"nothing\.safetensors is missing.*resume_from="):
        read_state(tmp_path / "nothing.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(TicketryError, match="cannot be read"):
        read_state(tmp_path / "torn.safetensors")


@pytest.mark.parametrize(
    "described",
    [
        '{"tensor": "7"}',
        "[1]",
        '{"items": {"a": {"x": {}}}}',
        "[" * 5000,
    ],
)
def test_files_with_the_right_digest_that_are_no_state(tmp_path: Path, described: str) -> None:
    path = tmp_path / "forged.safetensors"
    path.write_bytes(append_digest(save({"0": torch.ones(2)}, metadata={"ticketry": described})))
    with pytest.raises(TicketryError, match="take another checkpoint"):
        read_state(path)


def test_states_of_other_jobs_are_refused() -> None:
    model = network()
    mask = tk.prune(model, density=0.5)
    jobs = [HoldJob(mask), GradualJob(0.1, {}), gating()]
    for number, job in enumerate(jobs):
        job.start(model, total=100)
        stranger = jobs[number - 1].state() if number else {"done": 3}
        with pytest.raises(MaskError):
            job.load(stranger)
        job.release()


def test_nothing_is_left_on_the_model() -> None:
    model = network()
    for job in (HoldJob(tk.prune(model, density=0.5)), GradualJob(0.5, {}), gating()):
        job.start(model, total=4)
        job.after_update(2)
        job.start(model, total=4)  # again, after a training that broke off without a word
        job.release()
        job.release()
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_end_looks_at_removed_weights_and_lets_go_all_the_same() -> None:
    model = network()
    for job in (HoldJob(tk.prune(model, density=0.5)), GradualJob(0.5, {"distribution": "layerwise"})):
        job.start(model, total=4)
        job.after_update(4)
        nn.init.ones_(model[0].weight)
        with pytest.raises(HoldError, match=r"pruned weights of '0\.weight' are not 0"):
            job.finish()
        assert job.mask.density < 0.6
        assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_before_the_first_cut_pruning_does_not_act() -> None:
    job = GradualJob(0.5, {"begin": "2it", "end": "4it", "frequency": "1it", "distribution": "layerwise"})
    job.start(network(), total=6)
    assert not job._is_active()
    job.after_update(3)
    assert job._is_active()
    job.release()


@pytest.mark.parametrize("steps", [3, 5])
def test_a_training_that_ends_before_the_last_cut_warns(steps: int, recwarn: pytest.WarningsRecorder) -> None:
    """Such as one that was stopped early: its mask is not of the density that was asked for."""
    job = GradualJob(0.5, {"begin": "1it", "end": "4it", "frequency": "1it", "distribution": "layerwise"})
    job.start(network(), total=6)
    job.after_update(steps)
    job.finish()
    told = [str(one.message) for one in recwarn if "gradual pruning is left" in str(one.message)]
    if steps == 3:
        (text,) = told
        assert f"at density {job.mask.density:.4g} and not 0.5: 3 steps were made of steps=6" in text
        assert "last cut is at step 4: the trainer was stopped early" in text
    else:
        assert not told
        assert job.mask.kept == 28


def test_gates_end_in_the_hard_network() -> None:
    model, job = network(), gating(penalty=0.0, init=0.0, optimizer=partial(torch.optim.SGD, lr=5.0))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    job.start(model, total=2)
    job.before_step(0)
    model(torch.linspace(-1, 1, 10).reshape(2, 5)).square().sum().backward()
    job.before_update(None)
    job.finish()
    assert job.gates.beta == 200
    for name, kept in job.mask.items():
        assert torch.equal(model.state_dict()[name], weights[name] * kept * 2)  # 1 / sigmoid(0)


def test_gates_do_not_go_on_from_a_checkpoint_without_them() -> None:
    job = gating()
    job.start(network(), total=10)
    job.resume(0)
    with pytest.raises(UsageError, match="step 3, but the checkpoint has no state of gates"):
        job.resume(3)


# -- resumed -----------------------------------------------------------------------------------------------------------

CUTS = {"begin": "1it", "end": "19it", "frequency": "3it", "distribution": "layerwise"}


def pruned(until: int, total: int = 36, **options: str) -> GradualJob:
    """Gradual pruning to a fifth that has made some steps."""
    job = GradualJob(0.2, {**CUTS, **options})  # type: ignore[typeddict-item]
    job.start(network(), total)
    job.after_update(until)
    return job


def resumed(stored: Job, job: Job, done: int, total: int) -> Job:
    """Go on with a stored state and its weights at a step of a training of another length."""
    assert stored.model is not None
    model = network()
    model.load_state_dict(stored.model.state_dict())
    job.load(deepcopy(stored.state()))
    job.start(model, total)
    job.resume(done)
    return job


def test_gradual_pruning_keeps_its_schedule_when_resumed() -> None:
    shares = {"begin": "10%", "end": "70%"}
    for done in (12, 36):  # on the way, and finished
        job = resumed(pruned(done, **shares), GradualJob(0.2, {**CUTS, **shares}), done, 72)
        assert isinstance(job, GradualJob)
        job.after_update(72)
        assert job.mask.kept == pytest.approx(0.2 * job.mask.total, abs=1)
        assert max(job._gradual.cuts) == 25  # type: ignore[union-attr]  # 70 % of 36 steps, and not of 72
    with pytest.raises(MaskError, match=r"cuts at steps \d+ to 25, and this training has only 24 steps"):
        resumed(pruned(12, **shares), GradualJob(0.2, {**CUTS, **shares}), 12, 24)


@pytest.mark.parametrize("within", [6, 7, 8])
def test_state_between_the_step_and_its_pruning_resumes(within: int) -> None:
    """A callback that stands before ours writes such a state: the pruning step is made where training resumes."""
    job = resumed(pruned(within - 1), GradualJob(0.2, CUTS), within, 36)  # type: ignore[arg-type]
    assert job.mask == pruned(within).mask
    job.after_update(30)
    assert job.mask.kept == pytest.approx(0.2 * job.mask.total, abs=1)


def test_weights_and_state_of_two_checkpoints_are_refused() -> None:
    early, late = pruned(6), pruned(30)
    with pytest.raises(MaskError, match="not 0 in the model"):
        early.load(late.state())
    with pytest.raises(MaskError, match=r"of step 30, and training resumes at step 12"):
        resumed(late, GradualJob(0.2, CUTS), 12, 36)  # type: ignore[arg-type]


def gated(until: int, total: int = 36) -> GatesJob:
    job = gating(optimizer=partial(torch.optim.SGD, lr=0.05))
    model = network()
    job.start(model, total)
    for step in range(until):
        job.before_step(step)
        model(torch.ones(2, 5) * step).square().mean().backward()
        job.before_update(None)
        job.after_update(step + 1)
    return job


def test_gates_keep_their_temperature_when_resumed() -> None:
    """It follows the first schedule, stays at its end, and never falls back."""
    stored = gated(12)
    with pytest.warns(UserWarning, match=r"annealed for a training of 36 steps, and this training has 60"):
        job = resumed(stored, gating(), 12, 60)
    assert isinstance(job, GatesJob)
    for step, progress in ((12, 12 / 36), (35, 35 / 36), (36, 1), (59, 1)):
        job.before_step(step)
        assert job.gates.progress == progress
    with pytest.raises(MaskError, match=r"training of 36 steps, of which 12 are done, and this training has only 24"):
        resumed(stored, gating(), 12, 24)


def test_states_of_older_versions_resume() -> None:
    """They lack some entries, by which a schedule of another length is recognised."""
    stored, older = gated(12), gated(12).state()
    for entry in ("total", "done", "applied"):
        del older[entry]
    for total in (36, 72):
        job = gating()
        job.start(network(), total)
        job.load(older)
        if total == 72:
            with pytest.raises(MaskError, match=r"at step 12 of 72, where their temperature would fall back"):
                job.resume(12)
        else:
            job.resume(12)
            assert job.gates.state_dict().keys() == stored.gates.state_dict().keys()
            assert job.gates.progress == stored.gates.progress
    pruning, state = pruned(12), pruned(12).state()
    assert pruning.model is not None
    state.pop("cuts", None)
    again = GradualJob(0.2, CUTS)  # type: ignore[arg-type]
    model = network()
    model.load_state_dict(pruning.model.state_dict())
    again.start(model, 36)
    again.load(state)
    again.resume(12)
    again.after_update(36)
    assert again.mask == pruned(36).mask


def test_state_after_training_is_complete_and_is_not_resumed() -> None:
    stored = gated(36)
    model = stored.model
    stored.finish()
    stored.model = model  # as a trainer keeps it
    with pytest.raises(MaskError, match=r"after training had ended, .*step 36 of 60: train on .* HoldCallback"):
        resumed(stored, gating(), 36, 60)
    assert resumed(stored, gating(), 36, 36).mask == stored.mask


def test_state_loaded_for_a_training_that_never_began_is_forgotten() -> None:
    for stored, job in ((pruned(30), GradualJob(0.2, CUTS)), (gated(12), gating())):  # type: ignore[arg-type]
        job.load(stored.state())
        job.release()
        job.start(network(), 36)
        job.resume(0)
        assert job.mask.kept == job.mask.total


def test_surroundings_in_which_a_job_is_another() -> None:
    for job, optimizers, processes in ((gating(), 1, 2), (gating(), 2, 1), (GradualJob(0.1, {}), 2, 1)):
        with pytest.raises(UsageError, match=f"{job.name} (trains in one process|counts the steps of one optimiser)"):
            check_training_setup(job, optimizers=optimizers, processes=processes)
    check_training_setup(GradualJob(0.1, {}), optimizers=1, processes=8)
    check_training_setup(HoldJob(tk.prune(network(), density=0.5)), optimizers=2, processes=8)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in {name, *(one for one in sys.modules if one.startswith(f"{name}."))}:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"ticketry.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=f"needs {name}, which is not installed: pip"):
        importlib.import_module(f"ticketry.integrations.{name}")
