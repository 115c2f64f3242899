"""A two-layer BERT or GPT-2 in a folder, as transformers saves it, and labelled texts that it can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'ticketry[transformers]'"
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GOOD, BAD = ("wins", "learns", "trains", "shines"), ("loses", "fails", "stalls", "breaks")
WHO = ("the ticket", "a mask", "my net", "one weight", "the cat")


def saved(folder: Path, kind: str = "bert", words: int = 0, **config: object) -> Path:
    """Save a network without dropout and a tokenizer of whole words."""
    library = pytest.importorskip("tokenizers")
    known = [*SPECIAL, *sorted({*GOOD, *BAD, *" ".join(WHO).split(), "and"})]
    made = library.Tokenizer(
        library.models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )
    fast.save_pretrained(folder)
    torch.manual_seed(11)
    vocabulary = words or len(known)
    if kind == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings = {"vocab_size": vocabulary, "max_position_embeddings": 24, **sizes, **off, **config}
        network = transformers.BertForSequenceClassification(transformers.BertConfig(**settings))
    else:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "pad_token_id": 0}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        network = transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(vocab_size=vocabulary, **sizes, **off, **config)
        )
    network.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return sentences of different lengths with positive or negative words."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        label, words = ("good", GOOD) if number % 2 else ("bad", BAD)
        said = [f"{draw.choice(WHO)} {draw.choice(words)}" for _ in range(draw.randint(1, 3))]
        found.append({"text": " and ".join(said), "second": draw.choice(WHO), "label": label})
    return found


def write_rows(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
