"""Gradual pruning while the Trainer of transformers trains: one callback. `pip install 'ticketry[transformers]'`."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from ticketry.integrations.transformers import GradualCallback


def sequences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Is the first number of the sequence even?"""
    tokens = torch.randint(0, 32, (count, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": one, "labels": (one[0] % 2 == 0).long()} for one in tokens]


if __name__ == "__main__":
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)  # or from_pretrained("bert-base-uncased")
    early = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = GradualCallback(density=0.3, begin="20%", end="70%")
    arguments = TrainingArguments(
        output_dir="from-trainer", num_train_epochs=3, per_device_train_batch_size=32, learning_rate=3e-3,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=sequences(1024, 0), callbacks=[pruning]).train()
    ticket = pruning.ticket(early)
    ticket.save("ticket-from-transformers")
    held_out = sequences(256, 1)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.stack([one["input_ids"] for one in held_out])).logits
    right = (logits.argmax(1) == torch.stack([one["labels"] for one in held_out])).double().mean().item()
    print(f"{100 * ticket.mask.density:.1f} % of the weights, {100 * right:.1f} %")
