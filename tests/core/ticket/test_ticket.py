from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.sparse_training.hold import hold
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, UsageError

INFO = {
    "method": "iterative",
    "level": 5,
    "replicate": 1,
    "metric": "accuracy",
    "value": 91.25,
    "seeds": {"init": 0, "order": 1},
    "settings": {"rewind": "3%", "levels": (1, 2)},
}


def trained_ticket(build, name: str, density: float = 0.3) -> tuple[Ticket, nn.Module]:
    """Return a ticket from a few steps of training under a mask, and the trained model."""
    case = build(name)
    start = copy.deepcopy(case.model.state_dict())
    mask = prune(case.model, density, distribution="layerwise")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    with hold(case.model, mask):
        for batch in case.batches:
            optimizer.zero_grad()
            case.loss(case.model, batch).backward()
            optimizer.step()
    return Ticket(mask, start, INFO, case.model.state_dict()), case.model


def same_state(one, other) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def same(one: Ticket, other: Ticket) -> bool:
    return (
        one.mask == other.mask
        and list(one.mask) == list(other.mask)
        and one.info == other.info
        and same_state(one.start, other.start)
        and (one.trained is None) == (other.trained is None)
        and same_state(one.trained or {}, other.trained or {})
    )


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
class TestModels:
    def test_a_saved_ticket_restores_both_states(self, build, tmp_path, name):
        ticket, trained = trained_ticket(build, name)
        dense = build(name).model
        path = ticket.save(tmp_path / "ticket")
        again = Ticket.load(path)
        assert same(again, ticket)
        assert again.info["settings"]["levels"] == [1, 2]
        assert again.describe() == ticket.describe()
        assert same_state(load_file(path / "start.safetensors"), dense.state_dict())
        model = build(name, seed=9).model
        model.load_state_dict(load_file(path / "model.safetensors"))  # by a loader that knows no masks
        assert same_state(model.state_dict(), trained.state_dict())
        model = build(name, seed=9).model
        assert again.apply(model) is model
        assert same_state(model.state_dict(), ticket.mask.apply_(dense).state_dict())
        for key, kept in ticket.mask.items():
            assert torch.equal(model.state_dict()[key] == 0, ~kept)
        again.apply(model, "trained")
        assert same_state(model.state_dict(), trained.state_dict())
        inputs = build(name).batches[0][0]
        assert torch.equal(model.eval()(inputs), trained.eval()(inputs))


class TestTied:
    def test_a_loader_in_which_the_last_name_wins_gets_zeros_too(self, build, tmp_path):
        """Copies of a tied tensor have two names, and the mask only one of them."""
        model = build("lstm").model
        mask = prune(model, 0.3, distribution="layerwise")
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        path = Ticket(mask, dense, {}, dense).save(tmp_path / "ticket")
        loaded = load_file(path / "model.safetensors")
        assert torch.equal(loaded["decoder.weight"], loaded["encoder.weight"])
        assert not loaded["decoder.weight"][~mask["encoder.weight"]].any()

    def test_other_layers_of_the_same_shape_are_not_masked(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        mask = prune(model, 0.5)
        ticket = Ticket(Mask({"0.weight": mask["0.weight"]}), model.state_dict(), {}, model.state_dict())
        assert torch.equal(ticket.trained["1.weight"], model[1].weight.detach())

    def test_a_state_with_one_of_the_names_will_do(self, build):
        ticket, trained = trained_ticket(build, "lstm")
        for missing in ("decoder.weight", "encoder.weight"):
            state = {name: tensor for name, tensor in trained.state_dict().items() if name != missing}
            mask = Mask({"lstm.weight_hh_l0": ticket.mask["lstm.weight_hh_l0"]})
            model = Ticket(mask, state, {}).apply(build("lstm", seed=9).model)
            assert same_state(model.state_dict(), trained.state_dict())

    def test_two_tensors_are_not_put_into_one(self, build):
        """Otherwise the last name would silently replace the other tensor."""
        ticket, _ = trained_ticket(build, "lstm")
        state = {name: tensor.clone() for name, tensor in ticket.start.items()}
        state["encoder.weight"][0, 0] += 1
        model = build("lstm", seed=9).model
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(TicketError, match=r"'encoder\.weight' and 'decoder\.weight' are one tensor in"):
            Ticket(ticket.mask, state, {}).apply(model)
        assert same_state(model.state_dict(), before)


class TestBytes:
    def test_the_same_ticket_gives_the_same_bytes(self, build, tmp_path):
        ticket, _ = trained_ticket(build, "transformer")
        first, second = ticket.save(tmp_path / "a"), Ticket.load(tmp_path / "a").save(tmp_path / "b")
        shuffled = dict(reversed(list(ticket.start.items())))
        third = Ticket(ticket.mask, shuffled, dict(reversed(list(INFO.items()))), ticket.trained).save(tmp_path / "c")
        for name in ("ticket.json", "mask.safetensors", "start.safetensors", "model.safetensors"):
            assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()

    @pytest.mark.slow
    def test_in_another_process_too(self, tmp_path):
        code = (
            "import sys, torch\n"
            "from ticketry.core.mask import Mask\nfrom ticketry.core.ticket.ticket import Ticket\n"
            "state = {'w': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(2), 'n': torch.tensor(3)}\n"
            "Ticket(Mask({'w': torch.tensor([[1, 0, 1], [0, 0, 1]])}), state, {'z': 1}, state).save(sys.argv[1])\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True)
        state = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2), "n": torch.tensor(3)}
        here = Ticket(Mask({"w": torch.tensor([[1, 0, 1], [0, 0, 1]])}), state, {"z": 1}, state).save(tmp_path / "here")
        for path in here.iterdir():
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()

    def test_ticket_json(self, tmp_path):
        state = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
        ticket = Ticket(Mask({"w": torch.tensor([[1, 0, 0], [0, 0, 1]])}), state, {"method": "x", "parameters": 8})
        said = json.loads((ticket.save(tmp_path / "ticket") / "ticket.json").read_bytes())
        assert said["kind"] == "ticketry.ticket"
        assert said["format"] == 2
        assert said["info"] == {"method": "x", "parameters": 8}
        assert (said["density"], said["sparsity"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
        assert said["counts"] == {"kept": 2, "prunable": 6, "parameters": 8, "state": 8}
        assert said["layers"] == [{"name": "w", "shape": [2, 3], "kept": 2, "total": 6}]
        assert set(said["files"]) == {"mask.safetensors", "start.safetensors"}

    def test_every_type_of_tensor(self, tmp_path):
        state = {
            "w": torch.randn(4, 4).to(torch.bfloat16),
            "half": torch.randn(3).half(),
            "long": torch.tensor(5),
            "bool": torch.tensor([True, False]),
            "double": torch.randn(0, 3).double(),
            "byte": torch.tensor([255], dtype=torch.uint8),
            "complex": torch.randn(2, dtype=torch.complex64),
            "strided": torch.randn(4, 6)[:, ::2],
            "transposed": torch.randn(2, 5).t(),
            "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "bad": torch.tensor([float("nan"), float("inf"), -0.0]),
        }
        ticket = Ticket(Mask({"w": torch.eye(4)}), state, {}, state)
        again = Ticket.load(ticket.save(tmp_path / "ticket"))
        for name, tensor in state.items():
            assert again.start[name].dtype == tensor.dtype
            torch.testing.assert_close(again.start[name], tensor, rtol=0, atol=0, equal_nan=True, check_stride=False)

    def test_removed_weights_that_are_not_numbers_become_0(self, tmp_path):
        state = {"w": torch.tensor([float("nan"), float("inf"), 3.0, float("nan")])}
        path = Ticket(Mask({"w": torch.tensor([0, 0, 1, 1])}), state, {}, state).save(tmp_path / "ticket")
        assert str(load_file(path / "model.safetensors")["w"].tolist()) == "[0.0, 0.0, 3.0, nan]"


class TestParts:
    def test_the_ticket_holds_copies(self):
        model = nn.Linear(2, 2)
        ticket = Ticket(prune(model, 0.5), model.state_dict(), {}, model.state_dict())
        before = {name: tensor.clone() for name, tensor in ticket.start.items()}
        with torch.no_grad():
            model.weight.add_(1)
        assert same_state(ticket.start, before)

    def test_untrained(self, build, tmp_path):
        ticket, _ = trained_ticket(build, "resnet")
        ticket = Ticket(ticket.mask, ticket.start, INFO)
        path = ticket.save(tmp_path / "ticket")
        assert not (path / "model.safetensors").exists()
        again = Ticket.load(path)
        assert again.trained is None
        with pytest.raises(TicketError, match="has not been trained"):
            again.apply(build("resnet").model, "trained")
        with pytest.raises(TicketError, match="start and trained, not 'final'"):
            again.apply(build("resnet").model, "final")

    def test_trained_weights_need_not_be_read(self, build, tmp_path):
        ticket, _ = trained_ticket(build, "resnet")
        assert Ticket.load(ticket.save(tmp_path / "ticket"), trained=False).trained is None

    @pytest.mark.parametrize(
        ("mask", "start", "trained", "message"),
        [
            ({"x": (2,)}, {"w": (2,)}, None, "the mask names 'x', which start does not have"),
            ({"w": (3,)}, {"w": (2,)}, None, r"the mask of 'w' has the shape \(3,\), but start \(2,\)"),
            ({"w": (2,)}, {"w": (2,)}, {}, "'w' is in one of start and trained"),
            ({"w": (2,)}, {"w": (2,)}, {"w": (2,), "b": (1,)}, "'b' is in one of start and trained"),
            ({"w": (2,)}, {"w": (2,), "b": (1,)}, {"w": (2,), "b": (2,)}, r"'b' has the shape \(1,\) in start, but"),
            ({"w": (2,)}, {"w": (2,), "module.w": (2,)}, None, "two tensors of start are called 'w'"),
            ({"w": (2,)}, {"w": (2,), "deep": (1,) * 40}, None, "'deep' with 40 dimensions"),
        ],
    )
    def test_parts_that_do_not_agree_are_refused(self, mask, start, trained, message):
        def zeros(shapes):
            return {name: torch.zeros(shape) for name, shape in shapes.items()}

        with pytest.raises(TicketError, match=message):
            Ticket(Mask(zeros(mask)), zeros(start), {}, None if trained is None else zeros(trained))

    @pytest.mark.parametrize(
        "value",
        [3, "text", None, torch.eye(2).to_sparse(), torch.empty(2, device="meta")],
        ids=["int", "text", "none", "sparse", "meta"],
    )
    def test_states_hold_dense_tensors_only(self, value):
        with pytest.raises(TicketError, match="'extra', which is not a dense tensor"):
            Ticket(Mask({"w": torch.ones(2)}), {"w": torch.ones(2), "extra": value}, {})

    def test_a_name_that_safetensors_refuses(self):
        with pytest.raises(TicketError, match="a name that safetensors keeps for itself"):
            Ticket(Mask({"w": torch.ones(2)}), {"w": torch.ones(2), "__metadata__": torch.ones(2)}, {})


class TestMisfits:
    def test_missing_and_unexpected_names_are_listed(self, build):
        ticket, _ = trained_ticket(build, "resnet")
        model = build("resnet", seed=9).model
        model.extra = nn.Linear(2, 2)
        del model.fc.bias
        model.fc.register_parameter("bias", None)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            TicketError, match=r"has 'extra\.weight', 'extra\.bias' that the ticket lacks and lacks 'fc\.bias'"
        ):
            ticket.apply(model)
        assert same_state(model.state_dict(), before)

    def test_shapes_are_named(self, build):
        ticket, _ = trained_ticket(build, "resnet")
        model = build("resnet").model
        model.bn = nn.BatchNorm2d(7)
        with pytest.raises(
            TicketError, match=r"'bn\.weight' has the shape \(7,\) in ResidualNet, but \(6,\) in the ticket"
        ):
            ticket.apply(model)
        model.bn = nn.BatchNorm2d(6)
        model.fc = nn.Linear(9, 5)
        with pytest.raises(TicketError, match=r"'fc\.weight' has the shape \(5, 9\)"):
            ticket.apply(model)

    def test_another_model(self, build):
        ticket, _ = trained_ticket(build, "resnet")
        with pytest.raises(TicketError, match=r"LanguageModel has no parameter 'conv\.weight'"):
            ticket.apply(build("lstm").model)


class TestText:
    def test_describe(self, build):
        ticket, _ = trained_ticket(build, "resnet")
        info = INFO | {"parameters": 2000}
        text = Ticket(ticket.mask, ticket.start, info, ticket.trained).describe()
        kept, total = ticket.mask.kept, ticket.mask.total
        assert f"density:   {kept / total:.4g} ({kept:,} of {total:,} prunable weights kept)" in text
        assert f"sparsity:  {1 - kept / total:.4g}" in text
        left = 2000 - total + kept
        assert f"of all:    {left / 2000:.4g} ({left:,} of 2,000 parameters kept)" in text
        assert "method:    iterative" in text
        assert "metric:    accuracy 91.25" in text
        assert 'seeds:     {"init": 0, "order": 1}' in text
        table = text.split("\n\n")[1].splitlines()
        assert len(table) == 1 + len(ticket.mask)
        for line, row in zip(table[1:], ticket.mask.table(), strict=True):
            cells = [row.name, "x".join(map(str, row.shape)), str(row.kept), str(row.total), f"{row.density:.4f}"]
            assert line.split() == cells

    def test_control_characters_do_not_reach_the_terminal(self):
        state = {"w\x1b[2J": torch.ones(2)}
        text = Ticket(
            Mask(state), state, {"method": "a\x1b[31m\nfake: line", "settings": {"\x9b": "\u202e"}}
        ).describe()
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert not any(line.startswith("fake") for line in text.splitlines())

    @pytest.mark.parametrize("info", [{}, {"value": None}, {"value": {"a": 1}}, {"method": [1], "parameters": "many"}])
    def test_any_info_can_be_described(self, info):
        ticket = Ticket(Mask({"w": torch.zeros(2)}), {"w": torch.ones(2)}, info)
        assert "0 of 2 prunable weights kept" in ticket.describe()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"start": nn.Linear(4, 3)}, r"start= is a state dict, such as model\.state_dict\(\) .*, not a Linear"),
        ({"trained": nn.Linear(4, 3)}, "trained= is a state dict, .* not a Linear"),
        ({"info": "one-shot"}, 'info= is a dict of plain values, such as {"method": "one-shot"}, not a str'),
        ({"mask": nn.Linear(4, 3)}, "mask= is a tk.Mask, not a Linear"),
    ],
)
def test_a_part_of_another_kind_is_told_by_its_name(parts: dict[str, Any], message: str) -> None:
    layer = nn.Linear(4, 3)
    given: dict[str, Any] = {"mask": prune(layer, 0.5), "start": layer.state_dict(), "info": {}}
    with pytest.raises(UsageError, match=message):
        Ticket(**{**given, **parts})
