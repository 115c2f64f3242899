"""Networks of many families, small and untrained, to be captured: name -> (model, example inputs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Any]


class Tagger(nn.Module):
    """A bidirectional LSTM that gives a tag to each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(48, 7)

    def forward(self, sentence: Tensor) -> Tensor:
        return self.tags(self.lstm(self.words(sentence))[0])


class _Double(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            *(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)),
            *(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)),
        )


class UNet(nn.Module):
    """Two levels down and up, one way up by a transposed convolution and one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_Double(3, 8), _Double(8, 16)])
        self.middle = _Double(16, 32)
        self.rise = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.up = nn.ModuleList([_Double(32, 16), _Double(24, 8)])
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        one = self.down[0](image)
        two = self.down[1](nn.functional.max_pool2d(one, 2))
        x = self.middle(nn.functional.max_pool2d(two, 2))
        x = self.up[0](torch.cat([self.rise(x), two], 1))
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(self.up[1](torch.cat([x, one], 1)))


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and individual factors, so that folding errors show."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model


@contextmanager
def attention_by_formulas() -> Iterator[None]:
    """Torch computes attention as it was captured."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def image(batch: int = 1, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def words(batch: int = 1, length: int = 12) -> Tensor:
    return torch.randint(0, 40, (batch, length))


def _hugging(make: Callable[[Any], nn.Module], inputs: Callable[[], Any]) -> Callable[[], Made]:
    def build() -> Made:
        return make(pytest.importorskip("transformers")), inputs()

    return build


def _vision(kind: str, head: str = "ForImageClassification", size: int = 64, **settings: Any) -> Callable[[], Made]:
    def make(transformers: Any) -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(num_labels=5, image_size=size, **settings)
        return getattr(transformers, f"{kind}{head}")(config)

    return _hugging(make, lambda: {"pixel_values": image(2, size)})


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _language(
    kind: str, head: str = "ForCausalLM", inputs: Callable[[], Any] = lambda: {"input_ids": words(2)}, **settings: Any
) -> Callable[[], Made]:
    def make(transformers: Any) -> nn.Module:
        return getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(vocab_size=50, **settings))

    return _hugging(make, inputs)


def _bert_inputs() -> Any:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    return {"input_ids": words(2), "attention_mask": mask}


class Positions(nn.Module):
    """Adds numbers to each token that depend on its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(9, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


def _transformer() -> Made:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(32, 32), Positions(), encoder), torch.randn(2, 9, 32)


FAMILIES: dict[str, Callable[[], Made]] = {
    "lstm tagger": lambda: (Tagger(), words()),
    "u-net": lambda: (UNet(), image()),
    "torch transformer": _transformer,
    "bert": _language("Bert", "ForSequenceClassification", _bert_inputs, **SMALL),
    "bert without mask": _language("Bert", "ForSequenceClassification", **SMALL),
    "gpt2": _language("GPT2", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False),
    "llama": _language("Llama", num_key_value_heads=2, use_cache=False, **SMALL),
    "qwen3": _language("Qwen3", num_key_value_heads=2, use_cache=False, **SMALL),
    "opt": _language("OPT", word_embed_proj_dim=32, ffn_dim=64, use_cache=False, **SMALL),
    "t5 encoder": _language("T5", "EncoderModel", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "vit": _vision("ViT", patch_size=16, **SMALL),
    "swin": _vision("Swin", patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "convnext": _vision("ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
    "regnet": _vision("RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4),
    "resnet": _vision("ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
    "mobilenet v2": _vision("MobileNetV2", depth_multiplier=0.25),
    "mobilenet v1": _vision("MobileNetV1", depth_multiplier=0.25, min_depth=4),
    "efficientnet": _vision(
        "EfficientNet",
        width_coefficient=0.25,
        depth_coefficient=0.2,
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        kernel_sizes=[3, 5, 3],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
        hidden_dim=320,
    ),
}
"""Name -> a function that makes the model and example inputs."""

_IMAGES_OF = {"inception_v3": 96, "vit_b_16": 224, "swin_t": 64}

TORCHVISION = (
    *("resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_16"),
    *("swin_t", "regnet_y_400mf", "densenet121", "inception_v3", "googlenet", "squeezenet1_0", "shufflenet_v2_x0_5"),
    *("mnasnet0_5", "alexnet"),
)
TIMM = (
    *("mobilenetv3_small_050", "efficientnet_b0", "tf_efficientnet_b0", "regnety_002", "densenet121"),
    *("convnext_atto", "vit_tiny_patch16_224", "ghostnet_050", "repvgg_a0", "mixer_s32_224", "resnetv2_50"),
)


def torchvision_size(name: str) -> int:
    return _IMAGES_OF.get(name, 64)
