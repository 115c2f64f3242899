"""A mask held in a loop of Accelerate's, gradients accumulated: `accelerate launch examples/with_accelerate.py`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from digits import accuracy, data, network, train
from torch import nn
from torch.utils.data import DataLoader

import ticketry as tk

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = network()
train(model, 4)
early = {name: value.clone() for name, value in model.state_dict().items()}
mask = tk.prune(model, density=0.15)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data()[0], batch_size=32, shuffle=True))

with tk.hold(accelerator.unwrap_model(model), mask):  # the only line that is not Accelerate's
    for _ in range(4):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

if accelerator.is_main_process:
    plain = accelerator.unwrap_model(model)
    tk.Ticket(mask, early, {"method": "one-shot"}, trained=plain.state_dict()).save("ticket-from-accelerate")
    print(f"{100 * mask.density:.1f} % of the weights, {accuracy(plain):.1f} %")
