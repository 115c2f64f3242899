"""Fine-tuning as facts. Needs no torch."""

from __future__ import annotations

from ticketry.tasks.recipe import Recipe

HF = "hf:"
"""What the name of a pre-trained network begins with; its folder follows."""
HF_NAME = f"{HF}FOLDER"
HF_LINE = (
    "Your own texts (--option texts=FILE) told into classes by a pre-trained network of Hugging Face's transformers: a"
    " folder with config.json, model.safetensors and a tokenizer, fine-tuned from its weights"
)
EXTRA = "transformers"
"""What is installed for it."""

RECIPE = Recipe(
    length="3ep", batch=32, optimizer="adamw", lr=3e-5, weight_decay=0.01, clip=1.0, schedule="linear", warmup="10%"
)
"""Our own choice, within what is usual for BERT and its like."""
LENGTH = 128
"""Tokens of a text that are read, the first."""
OPTIONS = ("texts", "text", "target", "length", "train", "validation", "test", "pretrained")
