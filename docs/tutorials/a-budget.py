# %% [markdown]
# # Prune to a budget of multiplications
#
# Removing nine tenths of the weights does not remove nine tenths of the time. The cost of a weight depends on its layer: a
# convolution uses each weight at every position of the image, a linear layer uses it once. This notebook requests a quarter of the
# multiplications instead of a density, and measures the time that each saves.

# %%
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
# ## A network whose weights differ in cost
#
# Four convolutions have few weights, used at 256 or 64 positions. Two wide linear layers have most of the weights, each used once.


# %%
def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)),
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
# ## By density, and by multiplications
#
# `tk.prune(model, flops=0.25, example_inputs=…)` ranks the weights of all layers by score per multiplication and retains the best,
# until a quarter of the multiplications is left. The score here is `taylor`, the estimated change of the loss, which is larger for
# weights that are used at many positions. (Magnitudes are not, and would almost empty the expensive layers.) For comparison, the
# second mask retains as many weights by density.


# %%
def loss(model, batch):
    return nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch])


x, scored = images[:2], {"score": "taylor", "batches": list(torch.arange(1400).split(200)), "loss": loss}
by_flops = tk.prune(model, flops=0.25, example_inputs=x, **scored)
by_density = tk.prune(model, density=by_flops.density, **scored)
positions = {"0": 256, "3": 256, "7": 64, "10": 64, "15": 1, "17": 1}  # of the output of each layer


def multiplications(mask):
    return sum(int(kept.sum()) * positions[name.split(".")[0]] for name, kept in mask.items())


dense = sum(
    weight.numel() * positions[name.split(".")[0]] for name, weight in model.named_parameters() if name in by_flops
)
for name, mask in {"by multiplications": by_flops, "by density": by_density}.items():
    shares = [f"{100 * kept.double().mean():.0f}" for kept in mask.values()]
    print(
        f"{name:<20}{100 * mask.density:5.1f} % of the weights, {100 * multiplications(mask) / dense:5.1f} % of the",
        end="",
    )
    print(f" multiplications; by layer {', '.join(shares)} %")

# %% [markdown]
# ## What each mask saves
#
# Both tickets are rewound, trained and compiled into sparse kernels. The networks are called in turns on single images; each time is
# the shortest of 200 calls.

# %%
compiled = {}
for name, mask in {"by multiplications": by_flops, "by density": by_density}.items():
    model.load_state_dict(trained)
    tk.Ticket(mask, early, {"method": "one-shot"}).apply(model, "start")
    with tk.hold(model, mask):
        train_epochs(model, 4)
    print(f"{name:<20}{accuracy(model):.1f} % right")
    compiled[name] = tk.compile(model.eval(), mask, x)
compiled["dense"] = network().eval()
times = {name: [] for name in compiled}
with torch.no_grad():
    for _ in range(200):
        for name, called in compiled.items():
            begun = time.perf_counter()
            called(images[:1])
            times[name].append(time.perf_counter() - begun)
for name, found in times.items():
    print(f"{name:<20}{1e6 * min(found):6.0f} microseconds")

# %% [markdown]
# Latency is not proportional to multiplications either: a single image in a small layer spends its time on memory accesses and
# calls. A budget that would empty a layer raises an error that names the lowest sufficient budget. [Latency
# budgets](../budgets.md) explains more.
