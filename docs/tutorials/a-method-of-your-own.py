# %% [markdown]
# # A method of your own
#
# A search method is a module or a class with a docstring, `Settings` and `search`. Controls, replicates, resuming, tables and the
# report come by themselves. Here is one that keeps the weights that moved furthest from where they began, written to a file and
# named as `module:object`.

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
            yield Found(level, mask, early, dense, "continue", ticket)
''')
sys.path.insert(0, "")

# %% [markdown]
# ## Run it
#
# In Python by its name, or on the command line: `ticketry search furthest:Furthest --task digits --density 0.3,0.1`.

# %%
import ticketry as tk

asked = {"task": "digits", "recipe": {"length": "5ep"}, "replicates": 2, "workers": 0, "store": "tutorial-store"}
mine = tk.run("furthest:Furthest", density=[0.3, 0.1], **asked)
mine

# %% [markdown]
# ## Beside magnitude, at the same cost

# %%
theirs = tk.run("oneshot", density=[0.3, 0.1], rewind="3%", **asked)
for name, run in (("furthest", mine), ("magnitude", theirs)):
    for level in (1, 2):
        values = [one.value for one in run.tickets if one.level == level]
        print(f"{name:<10} {100 * run.tickets[level - 1].density:4.0f} %  {sum(values) / len(values):.2f} % right")

# %% [markdown]
# `ticketry.testing.check_search("furthest:Furthest", folder, task="digits")` tests the contract: the same seeds give the same bits,
# also after an interruption, pruned weights stay 0, and the test split is never looked at. An installed package offers the method
# under a short name by an entry point: [Extend it from your own package](../plugins.md).
