from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ticketry as tk
from samples import sample
from ticketry.errors import LayerCollapseError, TicketryError, UsageError
from ticketry.search import method, methods
from ticketry.search.iterative import Settings
from ticketry.testing import check_search

QUICK = {"length": "40it"}


@pytest.mark.parametrize(
    ("settings", "densities"),
    sample(
        [
            (Settings(rate=0.5, levels=3, rewind="10%"), (0.5, 0.25, 0.125)),
            (Settings(densities=(0.3, 0.11), rewind="0", distribution="layerwise"), (0.3, 0.11)),
            (Settings(density=0.2, rate=0.5, rewind="20it", retrain="rewind_lr"), (0.5, 0.25, 0.2)),
            (Settings(densities=(0.2,), rewind="end"), (0.2,)),
            (Settings(densities=(0.4,), retrain="restart", distribution="erk", score="random"), (0.4,)),
        ],
        1,
        ids=["rewound", "original", "rewind-lr", "finetune-one-shot", "restart-random"],
    ),
)
def test_contract(tmp_path: Path, settings: Settings, densities: tuple[float, ...]) -> None:
    check_search("iterative", tmp_path, settings=settings, densities=densities)


class TestLevels:
    def test_rate_gives_powers(self) -> None:
        assert Settings(rate=0.2, levels=3).targets == pytest.approx((0.8, 0.64, 0.512), abs=1e-12)

    def test_last_level_is_the_density_asked_for(self) -> None:
        densities = Settings(rate=0.2, density=0.05).targets
        assert densities[-1] == 0.05
        assert len(densities) == 14  # 0.8^13 = 0.055, 0.8^14 = 0.044
        assert Settings(rate=0.2, sparsity=0.95).targets[-1] == 0.05

    def test_a_power_is_not_visited_twice(self) -> None:
        assert Settings(rate=0.2, density=0.64).targets == (0.8, 0.64)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"rate": 0.0},
            {"rate": 1.0},
            {"levels": 0},
            {"density": 0.0},
            {"density": 1.5},
            {"density": 0.5, "sparsity": 0.5},
            {"densities": (0.5, 0.6)},
            {"densities": (0.5, 0.5)},
            {"densities": (0.5,), "density": 0.2},
            {"retrain": "again"},
            {"rewind": "soon"},
            {"distribution": "fair"},
            {"density": 1e-30},
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]

    def test_nothing_is_left_to_continue_at_the_end(self) -> None:
        with pytest.raises(UsageError, match="finetune, restart or none"):
            _ = Settings(rewind="end", retrain="continue").how_retrained


def run(lab: tk.Lab, **settings: object) -> list[tk.search.Found]:
    task = tk.task("digits")
    recipe = task.recipe.changed(**QUICK)
    return tk.search.iterative(lab, task, Settings(**settings), recipe=recipe)[0]  # type: ignore[arg-type]


def test_rewind_points_share_the_dense_training(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        first = run(lab, densities=(0.5,), rewind="0")
        trained = lab.ledger.segments_trained
        assert trained == 2
        second = run(lab, densities=(0.5,), rewind="50%")
        assert second[0].result.model == first[0].result.model
        # The dense network is there; only its state at the new rewind step and the new ticket are trained.
        assert lab.ledger.steps_trained == 40 + 40 + 20 + 20
        assert second[1].mask == first[1].mask


def test_spared_layers_are_not_in_the_denominator(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        everything = lab.store.get_mask(run(lab, densities=(0.5,))[1].mask)
        spared = lab.store.get_mask(run(lab, densities=(0.5,), spare_output=True)[1].mask)
        by_name = lab.store.get_mask(run(lab, densities=(0.5,), spare=(list(everything)[-1],))[1].mask)
    assert list(spared) == list(everything)[:-1]
    assert spared == by_name
    assert spared.kept == round(0.5 * spared.total)


def test_half_rate_layer_loses_half_as_much(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        scope = list(tk.scope(tk.task("digits").build()))
        mask = lab.store.get_mask(run(lab, densities=(0.6,), half_rate=(scope[-1],))[1].mask)
    assert mask.kept == round(0.6 * mask.total)
    assert mask.table()[-1].density == pytest.approx(0.8, abs=1 / mask.table()[-1].total)


def test_layer_collapse_is_told_before_it_is_trained(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError, match="layer collapse"):
        run(lab, densities=(0.0001,))


@pytest.mark.parametrize(
    "wrong", [{"score": "importance"}, {"spare": ("nothing",)}, {"rewind": "50ep"}, {"half_rate": ("nothing",)}]
)
def test_wrong_words_are_told(tmp_path: Path, wrong: dict[str, object]) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(TicketryError):
        run(lab, **{"densities": (0.5,), **wrong})


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        ({"levels": 3, "density": 0.1}, "density stands in place of levels"),
        ({"levels": 3, "time": 0.5}, "time stands in place of levels"),
        ({"rate": 0.5, "levels": 2, "densities": (0.5,)}, "densities stands in place of rate and levels"),
    ],
)
def test_how_far_it_goes_is_said_once(tmp_path: Path, twice: dict[str, object], said: str) -> None:
    """Else eleven levels were trained where three were asked for."""
    with pytest.raises(UsageError, match=said):
        tk.run("iterative", store=tmp_path, **twice)
    assert not tmp_path.joinpath("results").exists()


def test_what_is_none_is_not_said(tmp_path: Path) -> None:
    run = tk.run(
        "iterative", levels=1, density=None, replicates=1, controls=(), recipe=QUICK, workers=0, store=tmp_path
    )
    assert [ticket.density for ticket in run.tickets] == pytest.approx([0.8], abs=1e-4)


def test_batch_norm_statistics_are_rewound(shared_store: Path) -> None:
    """On a network with buffers: a level starts with the statistics of the rewind step, not with the trained ones."""
    task = _TinyConv()
    with tk.Lab(shared_store) as lab:
        (found,) = tk.search.iterative(lab, task, Settings(densities=(0.5,), rewind="5it"))
        ticket = found[1]
        start = lab.state(lab.train(ticket.result.segment.until(5)))
        rewound = lab.state(ticket.rewound)
        trained = lab.state(found[0].result)
    assert torch.equal(start["1.running_mean"], rewound["1.running_mean"])
    assert not torch.equal(start["1.running_mean"], trained["1.running_mean"])
    assert int(start["1.num_batches_tracked"]) == 5


def test_discovery() -> None:
    assert "iterative" in methods()
    assert method("iterative") is tk.search.iterative
    assert method("imp").search is method("iterative").search
    with pytest.raises(
        UsageError,
        match=r"not known: acdc, concrete, continuous, decorators, dynamic, early, gradual, iterative, l0, oneshot,"
        r" regularised, stochastic, imp, lth, omp, gmp, .*, random; or your own as package.module or NAME for NAME.py"
        r" in this folder$",
    ):
        method("magic")


class _TinyConv(tk.Task):
    """Stripes, upright or level: a small convolutional task with norms."""

    name = "stripes"
    metric = tk.Metric()
    recipe = tk.Recipe(length="20it", batch=16, lr=0.05)

    def key(self) -> dict[str, object]:
        return {"name": self.name}

    def build(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * 36, 2),
        )

    def load(self, data: Path | None = None) -> tk.Splits:
        generator = torch.Generator().manual_seed(0)
        targets = torch.arange(96) % 2
        upright = (torch.arange(8) % 2).float().expand(8, 8)
        images = torch.stack([upright if target else upright.T for target in targets])[:, None]
        images = images + torch.randn(images.shape, generator=generator)
        split = [tk.Split(images[i : i + 32], targets[i : i + 32]) for i in (0, 32, 64)]
        return tk.Splits(*split)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"correct": (outputs.argmax(1) == targets).sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:  # type: ignore[override]
        return {"accuracy": 100 * sums["correct"] / count}
