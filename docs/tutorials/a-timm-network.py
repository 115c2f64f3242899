# %% [markdown]
# # Prune whole channels of a timm network
#
# A MobileNetV3 of [timm](https://github.com/huggingface/pytorch-image-models) is trained on the handwritten digits of scikit-learn.
# Then half of its weights are removed as whole channels, which gives a smaller network with the same outputs as the masked one.
# Residual additions, depthwise convolutions and squeeze-and-excitation couple its channels: they can only be removed together. Nothing
# is downloaded. Install `'ticketry[timm]'`, and scikit-learn for the digits.

# %%
import time

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

import ticketry as tk

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # 1,797 images of 8 x 8
images = nn.functional.interpolate(images, 32, mode="bilinear")
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

# %% [markdown]
# ## Train the network


# %%
def train_epochs(model, epochs, lr):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=22 * epochs)
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()
            schedule.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return 100 * (model(images[test]).argmax(1) == labels[test]).double().mean().item()


model = timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=10)
train_epochs(model, 6, lr=4e-3)
print(f"dense: {sum(p.numel() for p in model.parameters()):,} parameters, {accuracy(model):.1f} % right")

# %% [markdown]
# ## Which channels are coupled
#
# `channel_groups` knows no layer of timm: it follows every index of every parameter through the network. Each line is a group of
# channels that can only be removed together, with some of the parameters that contain them.

# %%
groups = tk.structure.channel_groups(model, images[:2])
print(len(groups), "groups")
for group in sorted(groups, key=lambda group: -len(group.members))[:3]:
    print(f"{group.size} channels in {len(group.members)} parameters, such as", *[m.name for m in group.members[:3]])

# %% [markdown]
# ## Choose, train, shrink
#
# Channels are ranked by the norm of all their weights, and each group loses the same share, until half of the weights are left. After
# some epochs under the mask, `tk.shrink` removes the channels that are 0. The outputs stay equal, up to rounding.

# %%
mask = tk.structure.channels(model, images[:2], density=0.5, distribution="uniform")
early = {name: tensor.clone() for name, tensor in model.state_dict().items()}
with tk.hold(model, mask):
    train_epochs(model, 7, lr=4e-3)
small = tk.shrink(model.eval(), mask, images[:2]).eval()
print(f"shrunk: {sum(p.numel() for p in small.parameters()):,} parameters, {accuracy(small):.1f} % right")
with torch.no_grad():
    print("largest difference:", (small(images[test]) - model(images[test])).abs().max().item())

# %% [markdown]
# ## Measure the gain
#
# Batches of 64, one thread, both networks in turns; each time is the shortest of 30 calls.

# %%
times = {"dense": [], "shrunk": []}
with torch.no_grad():
    for _ in range(30):
        for name, called in zip(times, (model, small)):
            begun = time.perf_counter()
            called(images[:64])
            times[name].append(time.perf_counter() - begun)
for name, found in times.items():
    print(f"{name:<8}{1e3 * min(found):6.1f} ms")

# %% [markdown]
# ## Save and load
#
# A ticket contains the mask and the weights. timm builds the network again, and the ticket turns it into the small one. `ticketry
# search early --model timm:mobilenetv3_small_050 …` does all of this with controls and a verdict.

# %%
tk.Ticket(mask, early, {"method": "channels"}, trained=model.state_dict()).save("timm-ticket")
again = timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=10)
ticket = tk.Ticket.load("timm-ticket")
ticket.apply(again, "trained")
again = tk.shrink(again.eval(), ticket.mask, images[:2]).eval()
with torch.no_grad():
    print("the same outputs:", torch.allclose(again(images[test]), small(images[test]), atol=1e-5))
