# %% [markdown]
# # Write your own search method
#
# A search method is a module or a class with a docstring, `Settings` and `search`. Controls, replicates, resuming, tables and the
# report work with it automatically. This example retains the weights that moved furthest from their initial values. It is written to
# a file and named as `module:object`.

# %%
import sys
from pathlib import Path

Path("furthest.py").write_text('''
from dataclasses import dataclass

from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import Found


class Furthest:
    """The weights that moved furthest.

    A weight's score is how far it is from its initial value when the dense training ends.
    """

    name = "furthest"

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        """Settings of Furthest."""

        density: tuple[float, ...] = (0.2,)
        """Fractions of weights kept, a ticket each."""
        rewind: str = "3%"
        """Where tickets start: a step of the dense training."""

    @staticmethod
    def search(lab, task, recipe, settings, seeds):
        import ticketry as tk

        whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
        step = whole.at(settings.rewind)
        dense = lab.train(whole, keep=(0, step), label="dense")
        first, early = lab.at(dense, 0), lab.at(dense, step)
        yield Found(0, None, early, dense, "continue", dense)

        began, ended = lab.state(first), lab.state(dense)
        scores = {name: (ended[name] - began[name]).abs() for name in tk.scope(lab.model(task))}
        for level, density in enumerate(sorted(settings.density, reverse=True), start=1):
            mask = lab.store.put_mask(tk.allocate(scores, density))
            how = {"retrain": "continue", "rewound": early, "trained": dense, "order_seed": seeds.order}
            ticket = lab.train(retraining(lab, task, recipe, mask=mask, **how), label=f"density {density:g}")
            yield Found(level, mask, early, dense, "continue", ticket, searched=(dense,))
''')
sys.path.insert(0, "")

# %% [markdown]
# `searched` names the trainings that a mask depends on: here only the dense one, for any number of tickets. Without it, all previous
# tickets count as part of the search, as in iterative pruning, where each mask depends on the previous level.
#
# ## Run it
#
# From Python by its name, or from the command line: `ticketry search furthest:Furthest --task digits --density 0.3,0.1`.

# %%
import ticketry as tk

asked = {"task": "digits", "recipe": {"length": "5ep"}, "replicates": 2, "workers": 0, "store": "tutorial-store"}
mine = tk.run("furthest:Furthest", density=[0.3, 0.1], **asked)
mine

# %% [markdown]
# ## Compare with magnitude at the same cost
#
# `oneshot` retains the largest weights of the same dense network. By default it fine-tunes them; with `retrain="continue"` it rewinds
# them, as `furthest` does, so only the masks differ. Steps are multiples of the dense training and include the search. Two
# replicates only show how to compare: for a decision use ten and a verdict ([Does my ticket win?](does-my-ticket-win.ipynb)).

# %%
theirs = tk.run("oneshot", density=[0.3, 0.1], rewind="3%", retrain="continue", **asked)
for name, run in (("furthest", mine), ("magnitude", theirs)):
    for level in (1, 2):
        tickets = [one for one in run.tickets if one.level == level]
        mean = sum(one.value for one in tickets) / len(tickets)
        steps = run.costs[level - 1]["steps"]
        print(f"{name:<10} {100 * tickets[0].density:4.0f} %  {mean:.2f} % right, {steps:.2f} times the steps")

# %% [markdown]
# ## Check the contract
#
# `check_search` checks that the same seeds give the same bits, also after an interruption; that pruned weights stay 0; that the search
# never reads the test split; and that `searched` is correct. A package can offer its method under a short name with an entry point:
# [Plugins](../plugins.md).

# %%
from ticketry.testing import check_search

found = check_search("furthest:Furthest", Path("contract"), task="digits")
print(f"the dense network and {len(found) - 1} ticket: every promise is kept")
