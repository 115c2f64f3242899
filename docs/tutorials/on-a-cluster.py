# %% [markdown]
# # A search on a cluster
#
# A search decides what is trained; where it is trained is another question, and one option: `on`. Here Dask starts two workers on
# this machine, so that you can follow it on a laptop. On a cluster it is the address of its scheduler: `on="dask:HOST:8786"`, with
# `ray:` and `slurm:` beside it. `pip install 'ticketry[dask,digits,lab]'`.

# %%
import json
import time
from pathlib import Path

import ticketry as tk

small = {"task": "digits", "levels": 3, "rewind": "3%", "replicates": 2, "recipe": {"length": "150it"}}
small |= {"controls": ["shuffled"]}

# %% [markdown]
# ## On two workers of Dask
#
# The workers are told what to train, and put what they find into the store, a folder that all of them see. In a cluster that is a
# shared file system or a bucket (`store="s3://bucket/tickets"`).

# %%
begun = time.monotonic()
run = tk.run("iterative", on="dask:local,workers=2,memory=2GB", store="shared", **small)
print(f"{time.monotonic() - begun:.0f} s, {run.now['segments_trained']} trainings")
for ticket in run.tickets:
    print(
        f"replicate {ticket.replicate}, level {ticket.level}: {ticket.value:.2f} % right, {100 * ticket.density:.0f} % kept"
    )

# %% [markdown]
# ## The same bits
#
# A training is a function of its settings and seeds, not of the machine's load or of who did it. The same search in processes of
# this machine, with a store of its own, finds the same networks, bit for bit (on processors of one kind).

# %%
alone = tk.run("iterative", workers=1, store="alone", **small)
print([one.value for one in alone.tickets] == [one.value for one in run.tickets])


def networks(folder):
    points = json.loads((Path(folder.path) / "run.json").read_text())["points"]
    return sorted((one["role"], one["level"], one["replicate"], one["key"]) for one in points)


print(networks(alone) == networks(run))

# %% [markdown]
# ## What was trained is not trained again
#
# A driver that was killed, a worker that was lost, or a second search that needs the same networks: all go on from the store. Run
# again, with a level more, the search asks for everything and trains what is new.

# %%
more = tk.run("iterative", on="dask:local,workers=2,memory=2GB", store="shared", **{**small, "levels": 4})
print(f"{more.now['segments_asked']} asked for, {more.now['segments_trained']} trained")

# %% [markdown]
# On the command line it is `ticketry search iterative --task digits --on dask:local,workers=2`.
# [From a laptop to a cluster](../cluster.md) says what all machines need, and what happens when one is lost.
