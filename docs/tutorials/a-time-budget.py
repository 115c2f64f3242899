# %% [markdown]
# # Prune to a latency budget
#
# How many weights fit into a latency budget? Half the weights do not take half the time, and layers differ. This notebook requests a
# latency directly: `tk.prune(model, time=0.5, …)` measures the cost of every layer on this machine, retains the weights with the most
# importance per microsecond, and checks the result by timing it.

# %%
import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

import ticketry as tk

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # 1,797 images of 8 x 8
images = nn.functional.interpolate(images, 16, mode="bilinear")
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)


# %% [markdown]
# ## Train a network
#
# Any module works. The ticket will start from the weights of an early step, which are stored here.


# %%
def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def train_epochs(model, epochs):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return 100 * (model(images[test]).argmax(1) == labels[test]).double().mean().item()


model = network()
train_epochs(model, 1)
early = {name: value.clone() for name, value in model.state_dict().items()}
train_epochs(model, 4)
trained = {name: value.clone() for name, value in model.state_dict().items()}
print(f"dense: {accuracy(model):.1f} % right")

# %% [markdown]
# ## Measure the cost of each layer
#
# The network is compiled under a few random masks and its layers are timed. The result is a curve of latency against density for each
# layer, and the *floor*: the time that remains when all prunable weights are removed. The batch size is that of later calls, here 16.

# %%
model.eval()
x = images[:16]
costs = tk.cost.model(model, x)
print(costs)

# %% [markdown]
# ## Find a mask for half the latency
#
# `tk.cost.meet` does the same as `tk.prune(model, time=…)`, and returns all measurements: requested, estimated and measured latency
# with its interval. Importance is the estimated change of the loss to second order (the score `kfac`, the default if there are
# batches and a loss). Magnitudes of different layers are not comparable per unit of time: they would almost empty the most expensive
# layer. A budget can also be an amount: `time="2ms"`.


# %%
def loss(model, batch):
    return nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch])


seen = {"batches": list(torch.arange(1400).split(200)), "loss": loss}
masks, met = {}, {}
for share in (0.5, 0.3):
    met[share] = tk.cost.meet(model, x, share, base="engine", cost=costs, **seen)
    masks[f"time={share}"] = met[share].mask
    print(met[share])

# %% [markdown]
# ## Compare with a mask by density
#
# This mask has as many weights, chosen by the same score, but ignores the cost of layers.

# %%
masks["as many, by density"] = tk.prune(model, density=masks["time=0.5"].density, score="kfac", **seen)
for name, mask in masks.items():
    shares = [f"{100 * kept.double().mean():.0f}" for kept in mask.values()]
    print(f"{name:<22}{100 * mask.density:5.1f} % of the weights; by layer {', '.join(shares)} %")

# %% [markdown]
# ## Train, compile and time
#
# Each ticket is rewound to the early weights, trained, and compiled into sparse kernels. The calls alternate with those of the dense
# network in the same engine and are measured in CPU time, which other processes do not add to. There are two measurements: five consecutive calls, which is what a latency budget refers to,
# and single calls, between which all other networks run, so that the weights are no longer in the processor's cache.

# %%
compiled = {"dense": tk.compile(model.eval(), tk.Mask.ones(tk.scope(model)), x)}
for name, mask in masks.items():
    model.load_state_dict(trained)
    tk.Ticket(mask, early, {"method": "one-shot"}).apply(model, "start")
    with tk.hold(model, mask):
        train_epochs(model, 4)
    print(f"{name:<22}{accuracy(model):.1f} % right")
    compiled[name] = tk.compile(model.eval(), mask, x)


def timed(calls, rounds):
    """Seconds of a call: the median over rounds, of so many calls at once after one that is not counted, if there are several."""
    times = {name: [] for name in compiled}
    with torch.no_grad():
        for _ in range(rounds):
            for name, called in compiled.items():
                if calls > 1:
                    called(x)
                begun = time.process_time()
                for _ in range(calls):
                    called(x)
                times[name].append((time.process_time() - begun) / calls)
    return {name: statistics.median(found) for name, found in times.items()}


again, single = timed(5, rounds=60), timed(1, rounds=300)
for name in compiled:
    print(
        f"{name:<22}{1e6 * again[name]:6.0f} microseconds, {again[name] / again['dense']:.2f} of dense;"
        f" single calls {1e6 * single[name]:6.0f}, {single[name] / single['dense']:.2f}"
    )

# %% [markdown]
# ## Use the costs elsewhere
#
# Costs hold for one machine, batch size, precision and number of threads. `costs.save("laptop.json")` writes them to a file. On
# another machine, `tk.prune(model, time=0.5, base="engine", example_inputs=x, cost=tk.cost.load("laptop.json"))` finds a mask for the
# laptop without timing anything. A budget below the floor raises an error that names the layers that cause most of it. [Latency
# budgets](../budgets.md) explains more, and reports how closely budgets are met on seven networks; [the notebook about
# multiplications](a-budget.ipynb) uses FLOPs instead of time.
