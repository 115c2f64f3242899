# %% [markdown]
# # Run a search on a cluster
#
# A search decides what to train. One option, `on`, decides where. Here Dask starts two workers on this machine, so the notebook runs on
# a laptop. On a cluster, give the address of the scheduler: `on="dask:HOST:8786"`, or `ray:` or `slurm:`. Install
# `'ticketry[dask,digits,lab]'`.

# %%
import json
import time
from pathlib import Path

import ticketry as tk

small = {"task": "digits", "levels": 3, "rewind": "3%", "replicates": 2, "recipe": {"length": "150it"}}
small |= {"controls": ["shuffled"]}

# %% [markdown]
# ## Two Dask workers
#
# The workers receive requests to train, and write the results to the store, a folder that all of them can access. On a cluster that is a
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
# The result of a training depends on its settings and seeds, not on load or on the worker. The same search in local processes, with a
# separate store, finds the same networks bit for bit (on processors of one kind).

# %%
alone = tk.run("iterative", workers=1, store="alone", **small)
print([one.value for one in alone.tickets] == [one.value for one in run.tickets])


def networks(folder):
    points = json.loads((Path(folder.path) / "run.json").read_text())["points"]
    return sorted((one["role"], one["level"], one["replicate"], one["key"]) for one in points)


print(networks(alone) == networks(run))

# %% [markdown]
# ## Finished trainings are reused
#
# If the driver is killed, a worker is lost, or a second search needs the same networks, work continues from the store. This call
# requests one more level, and trains only what is new.

# %%
more = tk.run("iterative", on="dask:local,workers=2,memory=2GB", store="shared", **{**small, "levels": 4})
print(f"{more.now['segments_asked']} asked for, {more.now['segments_trained']} trained")

# %% [markdown]
# The command for this search is `ticketry search iterative --task digits --on dask:local,workers=2`. [Scaling out](../cluster.md)
# lists what all machines need, and what happens when one is lost.
