"""Networks of torchvision, timm and transformers, and three of torch's own: untrained, on small inputs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.families import Tagger, UNet
from tasks.models.library_support import import_or_skip

CLASSES = 7

TORCHVISION = {
    "alexnet": 64,
    "vgg16_bn": 32,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "inception_v3": 96,
    "googlenet": 64,
    "mnasnet1_0": 64,
    "convnext_tiny": 64,
    "vit_b_16": 64,
    "swin_t": 64,
    "maxvit_t": 64,
}
"""Name -> size of images. Those of the last ones are smaller than published, by an option."""

TIMM = {
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "mixer_s32_224": 64,
    "levit_128s": 224,
    "efficientformer_l1": 224,
    "cait_xxs24_224": 64,
    "pit_ti_224": 224,
    "mobilevit_xxs": 64,
    "resnetv2_50": 64,
    "repvgg_a0": 64,
    "ghostnet_050": 64,
    "hrnet_w18_small": 64,
    "dla34": 64,
    "darknet53": 64,
    "seresnet50": 64,
    "skresnet18": 64,
    "res2net50_26w_4s": 64,
    "cspresnet50": 64,
    "dpn48b": 64,
    "rexnet_100": 64,
    "tresnet_m": 64,
    "vovnet39a": 64,
    "resnest14d": 64,
    "convnext_atto": 64,
    "mobilenetv4_conv_small": 64,
}

OTHERS = ("u-net", "tagger", "encoder", "bert", "gpt2")

NAMES = (*(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM), *OTHERS)

_NARROW: dict[str, dict[str, Any]] = {
    "torchvision:inception_v3": {"aux_logits": False, "init_weights": False},
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network; skips the test where its library is not installed."""
    torch.manual_seed(seed)
    library, _, plain = name.partition(":")
    if name == "torchvision:maxvit_t":
        return _maxvit(import_or_skip(library))
    if library == "torchvision":
        more = _NARROW.get(name, {"image_size": 64} if plain.startswith("vit") else {})
        return import_or_skip(library).models.get_model(plain, weights=None, num_classes=CLASSES, **more)
    if library == "timm":
        fixed = {"img_size": 64} if TIMM[plain] == 64 and "224" in plain else {}
        return import_or_skip(library).create_model(plain, pretrained=False, num_classes=CLASSES, **fixed)
    return _of_torch(name) if name in ("u-net", "tagger", "encoder") else _of_transformers(name)


def _maxvit(torchvision: ModuleType) -> nn.Module:
    """maxvit_t for smaller images, in windows of 2 x 2: its own function sets 7 x 7, and so at least 224 pixels."""
    sizes = {"stem_channels": 64, "block_channels": [64, 128, 256, 512], "block_layers": [2, 2, 5, 2], "head_dim": 32}
    small = {"input_size": (64, 64), "partition_size": 2}
    return torchvision.models.MaxVit(**sizes, **small, stochastic_depth_prob=0.2, num_classes=CLASSES)


def _of_torch(name: str) -> nn.Module:
    if name == "encoder":  # as wide and as deep as BERT-tiny
        layer = nn.TransformerEncoderLayer(128, 2, 512, batch_first=True, activation="gelu")
        return nn.Sequential(nn.Embedding(50, 128), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    return UNet() if name == "u-net" else Tagger()


def _of_transformers(name: str) -> nn.Module:
    library = pytest.importorskip("transformers")
    if name == "bert":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        return library.BertForSequenceClassification(library.BertConfig(vocab_size=50, **sizes))
    config = library.GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=4, n_positions=32, use_cache=False)
    return library.GPT2LMHeadModel(config)


def inputs(name: str) -> Tensor:
    """Two examples."""
    draw = torch.Generator().manual_seed(5)
    library, _, plain = name.partition(":")
    if name in ("tagger", "encoder", "bert", "gpt2"):
        return torch.randint(40, (2, 12), generator=draw)
    size = {"torchvision": TORCHVISION, "timm": TIMM}.get(library, {}).get(plain, 32)
    return torch.randn(2, 3, size, size, generator=draw)


def settled(model: nn.Module) -> nn.Module:
    """Nothing is 0 or 1 that hides a mistake: shifts, statistics and last norms of a residual; no dropout."""
    draw = torch.Generator().manual_seed(6)

    def fill_uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.uniform_(low, high, generator=draw)

    for module in model.modules():
        for rate in ("p", "drop_prob", "drop_rate", "dropout", "attention_dropout", "attn_dropout_prob"):
            if type(getattr(module, rate, None)) is float:
                setattr(module, rate, 0.0)
        for local, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 and local == "weight":
                fill_uniform(parameter, 0.5, 1.5)
            elif float(parameter.detach().std() if parameter.numel() > 1 else 0) < 0.02:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            fill_uniform(module.running_mean, -0.2, 0.2)
            fill_uniform(module.running_var, 0.5, 1.5)
    return model.eval()
