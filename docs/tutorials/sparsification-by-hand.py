# %% [markdown]
# # Continuous Sparsification in your own loop
#
# Magnitude pruning decides once which weights to remove. Continuous Sparsification (Savarese et al. 2020) learns the decision: it
# multiplies each weight by a gate, the sigmoid of beta times s, and increases beta until the gates are 0 or 1. Here it runs in your
# own training loop.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import ticketry as tk

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
inputs, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train = torch.arange(1400)


def network():
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def accuracy(model):
    with torch.no_grad():
        return 100 * (model(inputs[1400:]).argmax(1) == labels[1400:]).double().mean().item()


def batches(epochs):
    return [batch for _ in range(epochs) for batch in train[torch.randperm(1400)].split(64)]


# %% [markdown]
# ## Train weights and gates together
#
# Gates have their own parameters and their own optimiser. `init` is the initial value of s: the smaller it is, the fewer gates stay
# open. `anneal` sets beta from the progress of training.

# %%
model = network()
early = {name: value.clone() for name, value in model.state_dict().items()}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
gates = tk.gates.attach(model, init=-0.05)
gate_optimizer = torch.optim.SGD(gates.parameters(), lr=10.0, momentum=0.9)
steps = batches(15)
for step, batch in enumerate(steps):
    gates.anneal(step / len(steps))
    optimizer.zero_grad()
    gate_optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch]) + gates.penalty(1e-8)
    loss.backward()
    optimizer.step()
    gate_optimizer.step()
    if step % 60 == 0:
        print(f"step {step:>3}  loss {loss.item():.3f}")

# %% [markdown]
# ## Round the gates
#
# Gates above one half become 1, the others 0. The result is an ordinary mask and an ordinary network.

# %%
gates.anneal(1.0)
mask = gates.harden()
gates.detach(apply=True)
print(f"{mask.kept:,} of {mask.total:,} weights ({100 * mask.density:.1f} %), {accuracy(model):.1f} % right")
mask

# %% [markdown]
# ## Is the mask better than chance?
#
# Train from the same early weights under the learned mask, and under the same mask shuffled within each layer.


# %%
def trained(mask):
    torch.manual_seed(1)
    found = network()
    tk.Ticket(mask, early, {"method": "continuous"}).apply(found, "start")
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1, momentum=0.9)
    with tk.hold(found, mask):
        for batch in batches(15):
            optimizer.zero_grad()
            nn.functional.cross_entropy(found(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return accuracy(found)


def shuffled(mask, seed):
    draw = torch.Generator().manual_seed(seed)
    return tk.Mask(
        {
            name: kept.flatten()[torch.randperm(kept.numel(), generator=draw)].view_as(kept)
            for name, kept in mask.items()
        }
    )


print(f"learnt   {trained(mask):.1f} %")
for seed in range(3):
    print(f"shuffled {trained(shuffled(mask, seed)):.1f} %")
