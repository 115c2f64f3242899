"""Gradual pruning while Lightning trains: one callback. `pip install 'ticketry[lightning,digits]'`."""

from __future__ import annotations

import lightning
import torch
from digits import accuracy, data, network
from torch import nn
from torch.utils.data import DataLoader

from ticketry.integrations.lightning import GradualCallback


class Digits(lightning.LightningModule):
    """A Lightning module that does not mention ticketry."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


if __name__ == "__main__":
    module = Digits()
    early = {name: value.clone() for name, value in module.net.state_dict().items()}
    pruning = GradualCallback(density=0.1, begin="20%", end="70%", module="net")
    trainer = lightning.Trainer(
        max_epochs=8, callbacks=[pruning], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data()[0], batch_size=64, shuffle=True))
    ticket = pruning.ticket(early)
    ticket.save("ticket-from-lightning")
    print(f"{100 * ticket.mask.density:.1f} % of the weights, {accuracy(module.net):.1f} %")
