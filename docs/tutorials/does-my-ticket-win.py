# %% [markdown]
# # Does my ticket win?
#
# One good number is no evidence, because seeds differ as much as tickets do. Here a search finds tickets and trains controls beside
# them; then a ticket is verified with fresh seeds. All results are stored, so a second run of this notebook trains nothing.

# %%
import ticketry as tk

run = tk.run(
    "iterative",
    task="digits",
    densities=[0.3, 0.1, 0.03],
    rewind="3%",
    recipe={"length": "6ep"},
    replicates=3,
    workers=0,
    store="tutorial-store",
)
run

# %% [markdown]
# Each level has a verdict. It compares the tickets with the dense network and with controls that should lose, paired by replicate.
# Three replicates seldom decide.

# %%
for verdict in run.verdicts:
    print(f"{100 * verdict.density:5.1f} %  {verdict.verdict}")

# %% [markdown]
# ## Fresh seeds
#
# The level was chosen because of its results, so the same results cannot confirm it. `tk.verify` trains the ticket again with seeds
# that no search has used, beside the dense network and controls, and stops at the first planned analysis that decides.

# %%
best = run.best(density=0.1)
proof = tk.verify(best, margin=1.0, interim=(3, 5), workers=0, store="tutorial-store", references=False)
proof

# %% [markdown]
# - **as good as dense**: the interval of ticket minus dense lies above minus the margin, here 1 point;
# - **better than controls**: the interval against every control lies above zero;
# - the p-value accounts for both, and for the planned interim analyses.

# %%
print(proof.verdict, f"p = {proof.p:.3g}", f"{proof.n} seeds")
for compared in proof.comparisons:
    print(f"ticket - {compared.role:<14} {compared.mean:+.2f}  [{compared.low:+.2f}, {compared.high:+.2f}]")
