# %% [markdown]
# # A ticket for a time
#
# You have a network and so many milliseconds. How sparse it has to be for that is not known beforehand: half the weights are not half
# the time, and each layer pays differently. This notebook asks for the time itself. `tk.prune(model, time=0.5, …)` measures what every
# layer of this network costs on this machine, keeps the weights that are worth the most for it, and checks the result by the clock.

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
# ## A network, trained
#
# Any module will do. The weights of an early step are kept: the ticket will start from them.


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
# ## What each layer costs
#
# The network is compiled under a few random masks, and its layers are timed. What comes out is a curve for each layer, from no weight
# to all of them, and what no mask makes smaller: the *floor*. A batch of 16 images is what this network is to be called with.

# %%
model.eval()
x = images[:16]
costs = tk.cost.model(model, x)
print(costs)

# %% [markdown]
# ## A mask for half the time
#
# `tk.cost.meet` does what `tk.prune(model, time=…)` does and returns all that it measured: what was asked for, what was estimated, and
# what the clock said, with its interval. Worth is what the loss would change by, to second order (the score `kfac`, the default where
# there are batches and a loss): magnitudes of different layers cannot be weighed against time, they would all but empty the dearest
# layer. A budget may also be written in seconds: `time="2ms"`.


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
# ## And by density?
#
# The same number of weights by the same score, chosen without regard to what a layer costs.

# %%
masks["as many, by density"] = tk.prune(model, density=masks["time=0.5"].density, score="kfac", **seen)
for name, mask in masks.items():
    shares = [f"{100 * kept.double().mean():.0f}" for kept in mask.values()]
    print(f"{name:<22}{100 * mask.density:5.1f} % of the weights; by layer {', '.join(shares)} %")

# %% [markdown]
# ## Trained, compiled, timed
#
# Each ticket goes back to the early weights, is trained, and compiled into sparse kernels. The calls are timed in turns with those of
# the dense network in the same kernels, by the processor's clock, to which others that use this machine do not add. Two ways are
# timed: five calls after one another, as of a model that is called again and again, which is what a budget of time means; and
# single calls, each after one of every other network, which finds none of its tables in the processor's cache.

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
# ## Elsewhere
#
# Costs are of one machine, batch, precision and number of threads. `costs.save("laptop.json")` keeps them in a file; on another machine
# `tk.prune(model, time=0.5, base="engine", example_inputs=x, cost=tk.cost.load("laptop.json"))` makes a mask for the laptop, without timing
# anything. A budget below the floor is refused, and the message says what makes most of it. [Budgets](../budgets.md) has the rest, and
# how near the clock comes on seven networks; [a ticket for a budget](a-budget.ipynb) counts multiplications in place of time.
