"""The plan of a smaller model as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ticketry as tk
from small_networks import NETWORKS, build
from ticketry.errors import StructureError


@pytest.mark.parametrize("name", ["separable", "lstm-tied", "norms-plain", "twice"])
def test_a_new_model_becomes_the_small_one(name: str, tmp_path: Path) -> None:
    """As a user would in another process: the plan and the small weights from files, the model from its class."""
    model, x = build(name)
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 0.5, distribution="uniform"), x)
    small = tk.structure.rebuild(model, plan)
    plan.save(tmp_path / "plan.safetensors")
    torch.manual_seed(9)
    fresh = NETWORKS[name][0]().double()
    again = tk.structure.rebuild(fresh, tk.structure.ShrinkPlan.load(tmp_path / "plan.safetensors"))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(x), small.eval()(x))
    assert repr(again) == repr(small)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = build("separable")
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 0.5), x)
    path = plan.save(tmp_path / "plan.safetensors")
    assert tk.structure.ShrinkPlan.load(path) == plan
    first = path.read_bytes()
    assert plan.save(path).read_bytes() == first
    with safe_open(path, "pt") as file:  # a plain safetensors file, with JSON
        assert file.get_tensor("stem.0.weight:0").tolist() == list(plan.kept["stem.0.weight"][0])
        assert json.loads(file.metadata()["ticketry.shrink.1"])["shapes"]["stem.0.weight"] == [8, 3, 3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.safetensors"]
    small = tk.structure.rebuild(model, plan)
    count = sum(t.numel() for m in (model, small) for t in m.state_dict().values())
    assert plan.removed == 2 * sum(t.numel() for t in model.state_dict().values()) - count


def test_nothing_removed(tmp_path: Path) -> None:
    model, x = build("mlp")
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 1.0), x)
    assert plan.removed == 0
    loaded = tk.structure.ShrinkPlan.load(plan.save(tmp_path / "plan"))
    assert torch.equal(tk.structure.rebuild(model, loaded).eval()(x), model.eval()(x))


def test_a_plan_of_another_model() -> None:
    model, x = build("mlp")
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 0.5), x)
    with pytest.raises(StructureError, match="another model's"):
        tk.structure.rebuild(build("dense")[0], plan)


def _write(path: Path, tensors: dict[str, torch.Tensor], text: object, key: str = "ticketry.shrink.1") -> Path:
    save_file(tensors, path, metadata={key: text if isinstance(text, str) else json.dumps(text)})
    return path


GOOD = {"shapes": {"a.weight": [4, 3]}, "attributes": {"a": {"out_features": 2}}}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"a.weight:0": torch.tensor([0, 4])}, GOOD),
        ({"a.weight:0": torch.tensor([2, 1])}, GOOD),
        ({"a.weight:0": torch.tensor([-1, 1])}, GOOD),
        ({"a.weight:0": torch.tensor([0.0, 1.0])}, GOOD),
        ({"a.weight:0": torch.tensor([], dtype=torch.int64)}, GOOD),
        ({"a.weight:7": torch.tensor([0, 1])}, GOOD),
        ({"b.weight:0": torch.tensor([0, 1])}, GOOD),
        ({"a.weight:x": torch.tensor([0, 1])}, GOOD),
        ({"a.weight:0": torch.tensor([0, 1])}, {**GOOD, "attributes": {"a": {"__class__": 2}}}),
        ({"a.weight:0": torch.tensor([0, 1])}, {**GOOD, "attributes": {"a": {"out_features": "2"}}}),
        ({"a.weight:0": torch.tensor([0, 1])}, "not JSON"),
        ({"a.weight:0": torch.tensor([0, 1])}, []),
    ],
)
def test_damaged_and_hostile_files(tmp_path: Path, tensors: dict[str, torch.Tensor], text: object) -> None:
    path = _write(tmp_path / "plan", tensors, text)
    with pytest.raises(StructureError, match="is no plan of the format"):
        tk.structure.ShrinkPlan.load(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="cannot be read"):
        tk.structure.ShrinkPlan.load(tmp_path / "absent")
    (tmp_path / "text").write_text("no")
    with pytest.raises(StructureError, match="no plan"):
        tk.structure.ShrinkPlan.load(tmp_path / "text")
    with pytest.raises(StructureError, match="no plan"):
        tk.structure.ShrinkPlan.load(_write(tmp_path / "other", {"x": torch.zeros(1)}, GOOD, "ticketry.mask.1"))
    model, x = build("mlp")
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, 0.5), x)
    with pytest.raises(StructureError, match="cannot be written"):
        plan.save(tmp_path / "nowhere" / "plan")
