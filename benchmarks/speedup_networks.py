"""Networks of docs/budgets.md: ``ticketry speedup benchmarks/speedup_networks.py:resnet18 --batch 1``. Needs timm.

All are untrained, with the weights that the libraries give them: latencies do not depend on them, masks do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _timm(name: str, size: int = 224) -> tuple[nn.Module, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name).eval(), torch.randn(2, 3, size, size)


def resnet18() -> tuple[nn.Module, torch.Tensor]:
    """Return ResNet-18 and images of 224 x 224 pixels."""
    return _timm("resnet18")


def mobilenet() -> tuple[nn.Module, torch.Tensor]:
    """Return MobileNetV3-small and images of 224 x 224 pixels."""
    return _timm("mobilenetv3_small_100")


def vit() -> tuple[nn.Module, torch.Tensor]:
    """Return ViT-tiny and images of 224 x 224 pixels."""
    return _timm("vit_tiny_patch16_224")


def bert() -> tuple[nn.Module, dict[str, Any]]:
    """Return BERT-tiny (2 layers of 128 units) and 128 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = BertModel(BertConfig(**sizes, attn_implementation="eager")).eval()
    return model, {"input_ids": torch.randint(0, 30000, (2, 128))}
