"""Settings that cannot be met or contradict each other are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import TicketryError
from ticketry.search import method

LENGTH = "57it"
HALF = {"density": (0.5,)}
TICKS = {"begin": "10it", "end": "30it", "tick": "4it", "rounds": 3}
NORMS = ("decorators",)
"""Methods that need a network with norms to get as far as these settings."""

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("acdc", {"warmup": "soon"}, "soon"),
    ("acdc", {"density": (0.5, 0.5)}, "each share once"),
    ("acdc", {"distribution": "fair"}, "fair"),
    ("acdc", {**HALF, "end": "end"}, ""),
    ("acdc", {**HALF, "phase": "50it"}, ""),
    ("acdc", {**HALF, "score": "importance"}, "importance"),
    ("acdc", {**HALF, "spare": ("nothing",)}, "nothing"),
    ("concrete", {"density": (0.1,), "sparsity": (0.9,)}, "either density"),
    ("concrete", {"density": (1.0, 0.5)}, "the dense network"),
    ("concrete", {"density": (float("nan"),)}, "0 < density <= 1"),
    ("concrete", {"sparsity": (1.0,)}, "0 <= sparsity < 1"),
    ("concrete", {"retrain": "rewind_lr"}, "continue or restart, not rewind_lr"),
    ("concrete", {"rewind": "end"}, "continue or restart, not finetune"),
    ("concrete", {"mask_length": "0it"}, "mask_length"),
    ("concrete", {"collapse": "often"}, "not known: raise, keep"),
    ("concrete", {"objective": "mse"}, "objective 'mse'"),
    ("concrete", {"temperature": float("nan")}, "temperature"),
    ("concrete", {"gate_lr": -0.1}, "lr"),
    ("concrete", {"rewind": "50ep"}, "beyond the end"),
    ("concrete", {"density": (0.3, 0.00002)}, "keeps 1 of 50200 weights, too few for one in each of the 3 layers"),
    ("continuous", {"structure": "2:4"}, "is not offered"),
    ("continuous", {"rounds": 0}, "rounds"),
    ("continuous", {"init": ()}, "init"),
    ("continuous", {"init": (0.1, 0.1)}, "init"),
    ("continuous", {"init": (0.1, 0.2), "density": 0.1}, "one init at most"),
    ("continuous", {"penalty": (1e-8, 1e-8)}, "penalty"),
    ("continuous", {"weights_between": "forget"}, "forget"),
    ("continuous", {"density": 0.1, "sparsity": 0.9}, "either density"),
    ("continuous", {"rewind": "end", "retrain": "continue"}, "finetune, restart or none"),
    ("continuous", {"final_temperature": 0.1}, "inverse temperature"),
    ("continuous", {"gate_optimizer": "muon"}, "muon"),
    ("decorators", {**TICKS, "rounds": 0}, "at least 1"),
    ("decorators", {**TICKS, "rounds": 8}, "do not fit"),
    ("decorators", {**TICKS, "tick": "25it"}, "do not fit"),
    ("decorators", {**TICKS, "end": "100%"}, "nothing to train"),
    ("decorators", {**TICKS, "strength": -1.0}, "from 0 to 1e6"),
    ("decorators", {**TICKS, "keep_at_least": 0}, "at least 1"),
    ("dynamic", {"density": (1.5,)}, "density"),
    ("dynamic", {"alpha": 1.0}, "0 < alpha < 1"),
    ("dynamic", {"grow": "hope"}, "gradient, random"),
    ("dynamic", {**HALF, "frequency": "45it", "end": "45it"}, "would never move"),
    ("dynamic", {**HALF, "frequency": "1it"}, "nothing would be trained between moves"),
    ("dynamic", {"spare": ("nothing",), "frequency": "11it"}, "matches no parameter"),
    ("dynamic", {"density": (0.5, 0.00003), "frequency": "11it"}, "layer collapse"),
    ("early", {"detector": "luck"}, "distance, masks"),
    ("early", {"threshold": -1.0}, "at least 0"),
    ("early", {"score": "nothing"}, "nothing"),
    ("early", {"latest": "9000it"}, "^latest 9000it is iteration 9000, beyond the end"),
    ("early", {"when": "9000it"}, "^when 9000it is iteration 9000, beyond the end"),
    ("early", {"structure": "2:4", "density": (0.5,)}, "0.75 is asked for"),
    ("early", {"structure": "channels", "distribution": "erk"}, "global or uniform"),
    ("early", {"structure": "channels", "regrow": True}, "do not return"),
    ("early", {"structure": "channels", "score": "twisted:l1"}, "no control of a score"),
    ("early", {"score": "l1"}, "--structure channels"),
    ("gradual", {"density": (0.5,), "sparsity": (0.5,)}, "either density"),
    ("gradual", {**HALF, "end": "end"}, ""),
    ("gradual", {**HALF, "begin": "90%"}, ""),
    ("gradual", {"structure": "2:4", "density": (0.2,)}, "is not offered"),
    ("gradual", {"structure": "channels", "half_rate": ("fc3.weight",)}, "single weights"),
    ("iterative", {"rate": 1.0}, "0 < rate < 1"),
    ("iterative", {"levels": 0}, "levels must lie in"),
    ("iterative", {"density": 1.5}, "density"),
    ("iterative", {"densities": (0.5, 0.6)}, "densities must fall"),
    ("iterative", {"densities": (0.5,), "density": 0.2}, "densities names every level"),
    ("iterative", {"retrain": "again"}, "again"),
    ("iterative", {"density": 1e-30}, "is not reached in 200 levels"),
    ("iterative", {"rewind": "end", "retrain": "continue"}, "finetune, restart or none"),
    ("iterative", {"rewind": "50ep"}, "beyond the end"),
    ("iterative", {"half_rate": ("nothing",)}, "nothing"),
    ("iterative", {"structure": "rows:1"}, "a whole number from 2 on"),
    ("iterative", {"structure": "search:2:4"}, "at most 2 of 4 weights, a density of 0.5, and 0.8 is asked for"),
    ("iterative", {"structure": "search:2:4", "densities": (0.5,), "half_rate": ("fc3.weight",)}, "no meaning"),
    ("iterative", {"structure": "4:2"}, "is not offered"),
    ("iterative", {"structure": "refill:0.3"}, r"write refill, or refill\+:0.3"),
    ("iterative", {"structure": "refill+:1.5"}, "0 < plus <= 1"),
    ("iterative", {"structure": "refill+:some"}, "a share such as 0.2, or match"),
    ("iterative", {"structure": "refill,coupled=outer"}, "agree or inner"),
    ("iterative", {"structure": "regroup,collapse=hope"}, "raise or keep"),
    ("iterative", {"structure": "regroup,method=luck"}, "similarity, hypergraph, paper, random"),
    ("iterative", {"structure": "2:4,rows=8"}, "the options of 2:4 are none"),
    ("iterative", {"structured_levels": 1}, "needs a structure"),
    ("iterative", {"structured_levels": 4, "structure": "2:4", "densities": (0.5, 0.3)}, "0 … 2"),
    ("l0", {"until": "0"}, "steps with them"),
    ("l0", {"until": "100%"}, "steps after them"),
    ("l0", {"penalty": -1.0}, "from 0 to 1e6"),
    ("l0", {"structure": "channels", "collapse": "keep"}, "single weights"),
    ("l0", {"keep_at_least": 2}, "add --structure channels"),
    ("l0", {"structure": "channels", "spare": ("fc1", "fc2")}, "no channels that can be removed"),
    ("oneshot", {"rewind": "end", "retrain": "rewind_lr"}, "finetune, restart or none"),
    ("oneshot", {"structure": "search:1:4", "density": (0.5, 0.25)}, "0.5 is asked for: ask for 0.25 or less"),
    ("oneshot", {"when": "5it", "retrain": "restart", "structure": "channels"}, "leave rewind and retrain"),
    ("regularised", {"penalty": "l3"}, "l1_scales, hoyer_square"),
    ("regularised", {"strength": 0.0}, "above 0"),
    ("regularised", {"until": "0"}, "steps with it"),
    ("regularised", {"until": "100%"}, "steps after it"),
    ("regularised", {"score": "slimming"}, "whole channels"),
    ("regularised", {"penalty": "l1_scales"}, "has none"),
    ("regularised", {"penalty": "group_hoyer_square", "score": "slimming"}, "pass no norm"),
    ("regularised", {"penalty": "group_hoyer_square", "distribution": "erk"}, "global or uniform"),
    ("regularised", {"structure": "rows:4"}, "with a structure, such as rows:4, the penalty is group_hoyer_square"),
    ("regularised", {"penalty": "group_lasso"}, "without one l1_scales"),
    ("regularised", {"penalty": "l1_scales", "half_rate": ("fc3",)}, "single weights"),
    ("stochastic", {"structure": "channels"}, "is not offered"),
]


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED)
def test_settings_are_refused_before_training(name: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    search = method(name)
    task = tk.task("digits", model="resnet-20@0.125") if name in NORMS else tk.task("digits")
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(TicketryError, match=said):
            search(lab, task, search.Settings(**settings), recipe=task.recipe.changed(length=LENGTH))
        assert lab.ledger.segments_trained == 0
