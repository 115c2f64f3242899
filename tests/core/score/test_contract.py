"""What every score that needs data promises: whose data, what it leaves behind, what it refuses."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from ticketry.core import score
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import MaskError, ScoreError, UsageError
from ticketry.testing import check_score

FIRST_ORDER = ["snip", "taylor", "fisher"]
SECOND_ORDER = ["crop", "grasp"]
OF_DATA = [*FIRST_ORDER, *SECOND_ORDER]
ALL = [*OF_DATA, "synflow", "inverted:snip", "shuffled:crop"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, "resnet") for name in [*ALL, "kfac", "magnitude", "random"]),
        *((name, "lstm") for name in ["crop", "synflow", "kfac"]),
        ("snip", "transformer"),
        ("crop", "transformer"),  # the fused attention has no second derivative
    ],
)
def test_the_contract(build, name, model):
    case = build(model)
    check_score(name, case.model, batches=case.batches[:2], loss=case.loss)


@pytest.mark.parametrize("name", OF_DATA)
def test_data_come_from_the_caller_alone_and_are_read_once(build, name):
    """The loss sees exactly the objects given, each as often as the others."""
    case = build("resnet")
    seen = []

    def loss(model, batch):
        seen.append(id(batch))
        assert model is case.model
        return case.loss(model, batch)

    batches = case.batches[:3]
    score.get(name)(case.model, scope(case.model), batches=iter(batches), loss=loss)
    assert seen == [id(batch) for batch in batches] * (2 if name in SECOND_ORDER else 1)


@pytest.mark.parametrize("name", ["fisher", "crop"])
def test_an_iterator_that_can_be_read_once_is_enough_for_several_iterations(build, name):
    case = build("resnet")
    first = prune(case.model, 0.5, score=name, batches=iter(case.batches), loss=case.loss, iterations=3)
    assert first == prune(case.model, 0.5, score=name, batches=case.batches, loss=case.loss, iterations=3)


def everything_of(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {
            key: (id(tensor), tensor.detach().clone()) for key, tensor in model.state_dict(keep_vars=True).items()
        },
        "modes": [module.training for module in model.modules()],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "generator": torch.get_rng_state(),
        "python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
    }


def unusual(model: nn.Module) -> nn.Module:
    for index, module in enumerate(model.modules()):
        module.training = index % 3 != 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if index % 4 == 0 else None
    return model


@pytest.mark.parametrize("fails", [False, True], ids=["", "raises"])
@pytest.mark.parametrize(
    ("name", "model"),
    [*zip(ALL, ("resnet", "lstm") * 4, strict=True), ("crop", "resnet"), ("synflow", "resnet")],
)
def test_everything_is_as_before(build, name, model, fails):
    case = build(model)
    network = unusual(case.model)
    known = scope(network)
    mask = Mask({key: torch.rand(shape) < 0.5 for key, shape in known.shapes.items()})

    class Mishap(Exception):
        pass

    def mishap(*_):
        raise Mishap

    def loss(module, batch):
        torch.rand(3)  # a loss that draws
        return case.loss(module, batch)

    if fails:
        network.get_submodule("fc" if model == "resnet" else "decoder").register_forward_hook(mishap)
    with torch.no_grad():
        before = everything_of(network)
        with pytest.raises(Mishap) if fails else nullcontext():
            score.get(name)(network, known, batches=case.batches[:3], loss=loss, at=mask)
        torch.testing.assert_close(everything_of(network), before, rtol=0, atol=0)


def test_a_buffer_that_is_replaced_in_the_forward_pass_is_put_back():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("cache", None)
            self.register_buffer("table", torch.arange(3.0).expand(4, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls = self.calls + 1
            self.cache = inputs
            return self.fc(inputs)

    model = Counter()
    calls, table = model.calls, model.table
    score.snip(model, scope(model), batches=[torch.ones(1, 2)], loss=lambda model, batch: model(batch).sum())
    assert model.calls is calls
    assert calls == 0
    assert model.cache is None
    assert model.table is table


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(self.norm(self.fc(inputs)))


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).pow(3).mean()


@pytest.mark.parametrize("name", [*OF_DATA, "grasp200"])
def test_what_is_not_said_is_seed_0_norms_by_batch_and_the_whole_network(name):
    """And each of them is handed on: another seed, running statistics or a mask gives other scores."""
    torch.manual_seed(0)
    model = Dropping()
    model.norm.running_mean.normal_()
    known, batches, function = scope(model), [torch.randn(8, 6)], score.get(name)

    def noisy(model, batch):
        return squared(model, batch + torch.randn_like(batch))

    def found(**options):
        torch.rand(1)
        return function(model, known, batches=batches, loss=noisy, **options)["fc.weight"]

    plain = found()
    assert torch.equal(found(seed=0, norms="batch", at=None), plain)
    assert torch.equal(found(at=Mask.ones(known)), plain)
    half = Mask({key: torch.arange(shape[0] * shape[1]).view(shape) % 2 == 0 for key, shape in known.shapes.items()})
    for options in ({"seed": 1}, {"norms": "running"}, {"at": half}):
        assert not torch.equal(found(**options), plain), options  # those at temperature 200 are tiny


@pytest.mark.parametrize("name", ["crop", "synflow"])
def test_a_compiled_model_is_scored_like_the_plain_one(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    batches = [torch.randn(3, 4)]
    plain = score.get(name)(model, scope(model), batches=batches, loss=squared)
    compiled = torch.compile(model, backend="eager")
    found = score.get(name)(compiled, scope(compiled), batches=batches, loss=squared)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 3 * inputs**2 * gradient


class TestRefused:
    model = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(), nn.Linear(3, 2))
    known = scope(model)
    batches = (torch.ones(2, 3),)

    @pytest.mark.parametrize("name", OF_DATA)
    def test_without_batches_or_loss(self, name):
        function = score.get(name)
        with pytest.raises(UsageError, match=f"score '{name}' needs batches and a loss: give batches="):
            function(self.model, self.known)
        with pytest.raises(UsageError, match="needs a loss: "):
            function(self.model, self.known, batches=self.batches)
        with pytest.raises(UsageError, match="needs batches: "):
            function(self.model, self.known, loss=squared)
        with pytest.raises(UsageError, match="there is no batch in batches="):
            function(self.model, self.known, batches=[], loss=squared)

    @pytest.mark.parametrize("name", OF_DATA)
    def test_gradients_that_are_all_0(self, name):
        dead = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
        with torch.no_grad():
            dead[0].bias.fill_(-100)
        with pytest.raises(ScoreError, match=f"score '{name}' is 0 for every weight"):
            score.get(name)(dead, scope(dead), batches=self.batches, loss=squared)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", OF_DATA)
    def test_a_loss_that_is_no_number(self, name, value):
        batches = [*self.batches, torch.full((2, 3), value)]
        with pytest.raises(ScoreError, match=r"the loss of batch 2 is (nan|inf)"):
            score.get(name)(self.model, self.known, batches=batches, loss=squared)

    @pytest.mark.parametrize("name", OF_DATA)
    def test_scores_that_overflow(self, name):
        def steep(model, batch):
            return (model(batch).sum() - model(batch).sum().detach()).abs().sqrt()  # 0, with an infinite slope

        with pytest.raises(ScoreError, match="is not finite"):
            score.get(name)(self.model, self.known, batches=self.batches, loss=steep)

    @pytest.mark.parametrize("name", [*OF_DATA, "synflow"])
    @pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.functional.cross_entropy])
    def test_a_criterion_in_the_place_of_a_loss(self, name, criterion):
        batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))]
        with pytest.raises(
            UsageError, match=r"called as loss\(model, batch\), and torch's (cross_entropy|CrossEntropyL)"
        ):
            score.get(name)(self.model, self.known, batches=batches, loss=criterion)

    @pytest.mark.parametrize(
        ("loss", "kind", "said"),
        [
            (lambda model, batch: model(batch), UsageError, r"the mean over the batch, not shape \(2, 2\)"),
            (lambda model, batch: 1.0, UsageError, "one number in a tensor, .* not float"),
            (lambda model, batch: squared(model, batch).detach(), ScoreError, "does not depend on any parameter in sc"),
        ],
    )
    def test_a_loss_that_is_no_scalar_of_the_parameters(self, loss, kind, said):
        with pytest.raises(kind, match=said):
            score.snip(self.model, self.known, batches=self.batches, loss=loss)

    @pytest.mark.parametrize("name", SECOND_ORDER)
    @pytest.mark.parametrize(
        ("operation", "named"),
        [
            (lambda outputs: torch.cdist(outputs, outputs * 2 + 1, p=1.5), "_cdist_backward"),
            (OnceOnly.apply, "OnceOnly"),
        ],
        ids=["torch", "own"],
    )
    def test_an_operation_without_second_derivative_is_named(self, name, operation, named):
        def loss(model, batch):
            return operation(model(batch)).mean()

        score.snip(self.model, self.known, batches=self.batches, loss=loss)
        with pytest.raises(
            ScoreError, match=f"^score '{name}' needs second derivatives: {named} has no second derivative; use"
        ):
            score.get(name)(self.model, self.known, batches=self.batches, loss=loss)

    def test_a_mask_of_something_else(self):
        other = Mask({"weight": torch.ones(2)})
        with pytest.raises(MaskError, match="not of the parameters in scope"):
            score.snip(self.model, self.known, batches=self.batches, loss=squared, at=other)

    @pytest.mark.parametrize("value", [0, -1, float("nan")])
    def test_a_temperature_that_is_none(self, value):
        with pytest.raises(UsageError, match="a temperature is a positive number"):
            score.grasp(self.model, self.known, batches=self.batches, loss=squared, temperature=value)

    def test_a_temperature_that_cannot_be_applied(self):
        def around(model, batch):
            return model[2](model[0](batch)).square().mean()

        with pytest.raises(UsageError, match="does not call the model"):
            score.grasp(self.model, self.known, batches=self.batches, loss=around, temperature=2)
        lstm = nn.LSTM(3, 2)
        with pytest.raises(UsageError, match="LSTM returns a tuple"):
            score.grasp(
                lstm, scope(lstm), batches=self.batches, loss=lambda model, batch: model(batch)[0].sum(), temperature=2
            )


def test_a_weight_that_the_loss_does_not_reach_is_worth_nothing():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    for name in OF_DATA:
        found = score.get(name)(
            model, scope(model), batches=[torch.ones(2, 3)], loss=lambda model, batch: squared(model["used"], batch)
        )
        assert not found["unused.weight"].any()
        assert found["used.weight"].any()
