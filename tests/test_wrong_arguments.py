"""Wrong values of each argument of public functions: the call works, or says which argument is wrong."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import ticketry as tk
import wrong_arguments as table
from ticketry.errors import TicketryError

SIGNATURES = {
    "hold": tk.hold,
    "gradual": tk.gradual,
    "gates.attach": tk.gates.attach,
    "sparse_training": tk.sparse_training,
}
"""Functions that the table calls inside of others."""
CHOICE = ("scope", "score", "distribution", "collapse", "keep_at_least", "pattern", "seed")
"""Further arguments of `gradual`."""

OTHER_WORDS = {
    "example_inputs": "inputs",
    "densities": "density",
    "granularities": "granularity",
    "controls": "values of the ticket",
    "steps": "step",
    "initial": "density",
    "names": "parameter",
}


def _arguments(name: str) -> list[str]:
    names = inspect.signature(SIGNATURES.get(name, table.FUNCTIONS[name][0])).parameters
    return [one for one in (*names, *(CHOICE if name == "gradual" else ())) if one in table.WRONG]


CASES = [(name, argument) for name in table.FUNCTIONS for argument in _arguments(name)]


@pytest.mark.parametrize("name", table.FUNCTIONS)
def test_the_arguments_of_the_table_work(name: str) -> None:
    function, arguments = table.FUNCTIONS[name]
    function(**arguments())


@pytest.mark.parametrize(("name", "argument"), CASES, ids=lambda one: one)
def test_a_wrong_value_works_or_is_named(name: str, argument: str) -> None:
    function, arguments = table.FUNCTIONS[name]
    unnamed = []
    for value in table.WRONG[argument]:
        try:
            function(**{**arguments(), argument: value})
        except TicketryError as error:
            if not _is_named(argument, value, str(error)):
                unnamed.append(f"{argument}={value!r:.60}: {error}")
    assert not unnamed, "\n".join(unnamed)


def _is_named(argument: str, value: Any, message: str) -> bool:
    words = (argument, argument.replace("_", " "), OTHER_WORDS.get(argument, argument))
    return any(word in message for word in words) or (isinstance(value, str) and value in message)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.tensor])
def test_numbers_of_other_libraries_are_numbers(kind: Any) -> None:
    model = table.net()
    expected = tk.prune(model, 0.5, keep_at_least=2, seed=3)
    assert tk.prune(model, kind(0.5), keep_at_least=2, seed=3) == expected


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_other_libraries_are_whole_numbers(kind: Any) -> None:
    model = table.net()
    expected = tk.prune(model, 0.5, score="random", keep_at_least=2, seed=3, iterations=2)
    found = tk.prune(model, 0.5, score="random", keep_at_least=kind(2), seed=kind(3), iterations=kind(2))
    assert found == expected
    assert tk.structure.n_m(model, expected, kind(2), kind(4)) == tk.structure.n_m(model, expected, 2, 4)
