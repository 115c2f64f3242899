"""Scores that are written as a formula have the signature of what `of_gradients` and `of_gradient_flow` make of it."""

from __future__ import annotations

from typing import Any

import griffe

_MAKERS = ("of_gradients", "of_gradient_flow")
_MADE = "core.score._formula.DataScore.__call__"


class FormulaScores(griffe.Extension):
    """The pages are made of the source, where the formula's own arguments stand."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.name != "ticketry":
            return
        made = pkg[_MADE]
        parameters = [one for one in made.parameters if one.name != "self"]
        for module in pkg["core.score"].modules.values():
            for function in module.functions.values():
                if any(one.callable_path.rpartition(".")[2] in _MAKERS for one in function.decorators):
                    function.parameters = griffe.Parameters(*parameters)
                    function.returns = made.returns
