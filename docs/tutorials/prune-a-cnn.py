# %% [markdown]
# # Prune and speed up your own CNN
#
# This notebook trains a convolutional network on the handwritten digits of scikit-learn and makes it smaller in two ways: it removes
# whole channels, and it removes single weights and computes with sparse kernels. Both are timed.

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
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

# %% [markdown]
# ## The network and its training
#
# This is ordinary PyTorch. `train_epochs` stands for the training loop that you already have.


# %%
def network():
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train_epochs(model, epochs):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).double().mean().item()


model = network()
train_epochs(model, 2)
early = {name: value.clone() for name, value in model.state_dict().items()}
train_epochs(model, 6)
print(f"dense: {sum(p.numel() for p in model.parameters()):,} parameters, {100 * accuracy(model):.1f} % right")

# %% [markdown]
# ## Whole channels
#
# `tk.structure.channels` chooses channels, together with everything that belongs to a channel: its bias, its norm, and the inputs of
# the next layer. `tk.shrink` returns the smaller model, with the same outputs as the masked one.

# %%
channels = tk.structure.channels(model, images[:2], density=0.25)
with tk.hold(model, channels):
    train_epochs(model, 4)
small = tk.shrink(model, channels, images[:2])
print(f"shrunk: {sum(p.numel() for p in small.parameters()):,} parameters, {100 * accuracy(small):.1f} % right")
model.eval()
print("largest difference:", (small.eval()(images[test]) - model(images[test])).abs().max().item())

# %% [markdown]
# ## Single weights
#
# The ticket is the largest tenth of the weights, rewound to early values and trained again. Zeros do not make a dense engine faster;
# `tk.compile` computes only with the retained weights.

# %%
train_epochs(model := network(), 8)
mask = tk.prune(model, density=0.1)
tk.Ticket(mask, early, {"method": "one-shot"}).apply(model, "start")
with tk.hold(model, mask):
    train_epochs(model, 8)
print(f"ticket: {mask.kept:,} of {mask.total:,} weights, {100 * accuracy(model):.1f} % right")
fast = tk.compile(model.eval(), mask, images[:2])

# %% [markdown]
# ## Measure the gain
#
# One image, one thread, the models in turns; each time is the median of 200 calls. Other machines give other figures; `ticketry
# bench` compares with the fastest dense engines that are installed.

# %%
dense = network().eval()
one, times = images[:1], {"dense": [], "shrunk": [], "sparse kernels": []}
with torch.no_grad():
    for _ in range(200):
        for name, called in zip(times, (dense, small, fast)):
            begun = time.perf_counter()
            called(one)
            times[name].append(time.perf_counter() - begun)
for name, found in times.items():
    print(f"{name:<16}{1e6 * sorted(found)[100]:8.0f} microseconds")
