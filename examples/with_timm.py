"""A train script as timm's own, with three lines added: `python examples/with_timm.py --density 0.2`.

The added lines end with `# 1` to `# 3`. All others are what timm's `train.py` does: model, optimiser, schedule and loss
by their names, validation after each epoch. `pip install 'ticketry[timm,digits]'`.
"""

from __future__ import annotations

import argparse

import timm
from digits import accuracy, data
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, random_seed
from torch.utils.data import DataLoader

import ticketry as tk

parser = argparse.ArgumentParser(description="timm training on handwritten digits")
parser.add_argument("--model", default="test_resnet")
parser.add_argument("--opt", default="adamw")
parser.add_argument("--lr", type=float, default=4e-3)
parser.add_argument("--sched", default="cosine")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--warmup-epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--density", type=float, default=0.2)


def main() -> None:
    """Train, and prune while it trains."""
    arguments = parser.parse_args()
    random_seed(0)
    model = timm.create_model(arguments.model, in_chans=1, num_classes=10)
    loader = DataLoader(data()[0], batch_size=arguments.batch_size, shuffle=True, drop_last=True)
    optimizer = create_optimizer_v2(model, opt=arguments.opt, lr=arguments.lr, weight_decay=0.05)
    schedule, epochs = create_scheduler_v2(
        optimizer,
        sched=arguments.sched,
        num_epochs=arguments.epochs,
        warmup_epochs=arguments.warmup_epochs,
        warmup_lr=1e-5,
    )
    loss_function = LabelSmoothingCrossEntropy(arguments.smoothing)
    pruning = tk.gradual(model, density=arguments.density, steps=len(loader) * epochs * 3 // 4)  # 1
    for epoch in range(epochs):
        losses = AverageMeter()
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_function(model(inputs), targets)
            loss.backward()
            optimizer.step()
            pruning.step()  # 2
            losses.update(loss.item(), len(inputs))
        schedule.step(epoch + 1)
        kept = 100 * pruning.mask.density
        print(f"epoch {epoch}: loss {losses.avg:.3f}, {kept:.1f} % of the weights, {accuracy(model):.1f} %")
    tk.Ticket(pruning.mask, model.state_dict(), {"method": "gradual"}, trained=model.state_dict()).save("timm")  # 3


if __name__ == "__main__":
    main()
