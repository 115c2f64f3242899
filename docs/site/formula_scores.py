"""Show formula scores with the signature that `of_gradients` and `of_gradient_flow` give them."""

from __future__ import annotations

from typing import Any

import griffe

_MAKERS = ("of_gradients", "of_gradient_flow")
_CALL = "core.score.gradient_scores.DataScore.__call__"


class FormulaScores(griffe.Extension):
    """Replaces the arguments of formulas, which the source shows, by those of the scores."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.name != "ticketry":
            return
        made = pkg[_CALL]
        parameters = [one for one in made.parameters if one.name != "self"]
        for module in pkg["core.score"].modules.values():
            for function in module.functions.values():
                if any(one.callable_path.rpartition(".")[2] in _MAKERS for one in function.decorators):
                    function.parameters = griffe.Parameters(*parameters)
                    function.returns = made.returns
