# %% [markdown]
# # Prune a Transformer from Hugging Face
#
# This BERT from transformers is small and has random weights, so that nothing is downloaded; a model from `from_pretrained` works in
# the same way. It learns to tell whether a sequence has more even numbers than odd ones. Then attention heads and hidden units are
# removed.

# %%
import torch
from transformers import BertConfig, BertForSequenceClassification

import ticketry as tk

torch.manual_seed(0)
torch.set_num_threads(1)
config = BertConfig(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=16,
    num_labels=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
model = BertForSequenceClassification(config)
tokens = torch.randint(0, 64, (2400, 15))
labels = ((tokens % 2 == 0).sum(1) > 7).long()


def train(steps):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in [torch.randint(0, 2000, (64,)) for _ in range(steps)]:
        optimizer.zero_grad()
        model(input_ids=tokens[batch], labels=labels[batch]).loss.backward()
        optimizer.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return 100 * (model(input_ids=tokens[2000:]).logits.argmax(1) == labels[2000:]).double().mean().item()


train(200)
print(f"dense: {sum(p.numel() for p in model.parameters()):,} parameters, {accuracy(model):.1f} % right")

# %% [markdown]
# ## What can be removed
#
# `channel_groups` follows every index of every parameter through one run of the model. Heads and hidden units can be removed exactly.
# The features that a layer norm normalises over cannot, and the group's `reason` says so.

# %%
example = tokens[:2]
for group in tk.structure.channel_groups(model, example)[:8]:
    print(f"{group.name:<55}{group.size:>5}  {group.reason or 'can go'}")

# %% [markdown]
# ## Remove, train, shrink

# %%
mask = tk.structure.channels(model, example, density=0.5)
with tk.hold(model, mask):
    train(100)
small = tk.shrink(model, mask, example)
print(f"shrunk: {sum(p.numel() for p in small.parameters()):,} parameters, {accuracy(small):.1f} % right")
print(
    "feed-forward units of each layer:", [layer.intermediate.dense.out_features for layer in small.bert.encoder.layer]
)
model.eval()
with torch.no_grad():
    apart = small.eval()(input_ids=tokens[2000:]).logits - model(input_ids=tokens[2000:]).logits
print("largest difference to the masked model:", apart.abs().max().item())
