"""The public names in use: tests/test_public.py runs mypy --strict over this file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import ticketry as tk


def own_loop(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, early: dict[str, torch.Tensor]) -> None:
    """Enforce a mask in a custom loop, and write a ticket."""
    mask: tk.Mask = tk.prune(model, density=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tk.hold(model, mask):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
    share: float = mask.density
    ticket = tk.Ticket(mask, early, {"share": share}, trained=model.state_dict())
    path: Path = ticket.save("my-ticket")
    whole: nn.Module = tk.Ticket.load(path).apply(model, "trained")
    fast = tk.compile(whole, mask, inputs)
    outputs = fast(inputs)
    print(outputs, tk.shrink(whole, mask, inputs))


def experiments(task: tk.Task) -> None:
    """Read the results of commands."""
    run = tk.run("iterative", task=task, density=0.05, rewind="3%", replicates=3, verify=True)
    best = run.best(density=0.05)
    level: int = best.level
    value: float = best.value
    ticket: tk.Ticket = best.load()
    for one in run.verdicts:
        words: str = one.verdict
        print(level, value, words, one.interval, ticket.mask.density)
    proof = tk.verify(best, margin=0.5, interim=(5, 10))
    if proof.interval is not None:
        print(proof.interval[0] + proof.difference, proof.networks[0].values)
    study = tk.stability("iterative", task="digits", rewinds=("0", "3%"))
    page: Path = study.report("stability.html")
    timed = tk.bench(best, batch=(1, 64))
    saved = [each.saved for compared in timed.comparisons for each in compared.saved]
    grouped = tk.restructure(best, "regroup", rows=8)
    print(page, saved, grouped.structure.layers[-1].coverage, run.report())


def lab(recipe: tk.Recipe) -> None:
    """Use the parts of experiments."""
    step = tk.Step.parse("3%").at(total=100, per_epoch=10)
    with tk.Lab(".ticketry", workers=0) as one:
        print(one.per_epoch(tk.task("digits"), recipe), step)
