"""How timm and torchvision are called: small packages with their names stand in for them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ticketry.errors import MissingExtraError, TaskError
from ticketry.tasks import models

TIMM = """
from types import SimpleNamespace
import torch
from torch import nn
__version__ = "9.8.7"
calls = []

def list_models():
    return ["plain18", "fixed_224", "two_outputs", "fails", "counts"]

def get_pretrained_cfg(name):
    return None if name == "plain18" else SimpleNamespace(fixed_input_size=name == "fixed_224")

class Net(nn.Module):
    def __init__(self, inputs, outputs, size=None):
        super().__init__()
        self.conv, self.fc, self.size = nn.Conv2d(inputs, 4, 3), nn.Linear(4, outputs), size
    def forward(self, x):
        if self.size is not None and x.shape[2:] != self.size:
            raise AssertionError("Input height does not match")
        return self.fc(self.conv(x).mean((2, 3)))

class Two(Net):
    def forward(self, x):
        return super().forward(x), x

def create_model(name, *, pretrained, in_chans, num_classes, **more):
    calls.append((name, pretrained, in_chans, num_classes, more))
    if name == "fails":
        raise ValueError("cannot be made\\nat all")
    if name == "counts":  # as some do, it reads a number that the meta device does not have
        in_chans = int((torch.ones(1) * in_chans).tolist()[0])
    return (Two if name == "two_outputs" else Net)(in_chans, num_classes, more.get("img_size"))
"""

TORCHVISION = """
from . import models
__version__ = "7.6.5+cpu"
"""

TORCHVISION_MODELS = """
import sys
from torch import nn
calls = []

def list_models(module=None):
    classifiers = ["resnet18", "vit_b_16", "googlenet"]
    return classifiers if module is sys.modules[__name__] else [*classifiers, "detector"]

def get_model(name, *, weights, num_classes, **more):
    calls.append((name, weights, num_classes, more))
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes) if name == "lazy" else nn.Linear(48, num_classes))
"""

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"

Installed = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Write a package that is found first; the real ones are back after the test."""
    ours = {"timm", "torchvision"}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ours}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget()

    def write(file: str, source: str) -> None:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.modules.update(before)
    _forget()


def _forget() -> None:
    models._classifier_names_of_library.cache_clear()
    models._try_on_meta_device.cache_clear()


def test_timm_builds_an_untrained_network(install: Installed) -> None:
    install("timm/__init__.py", TIMM)
    model = models.build("timm:plain18", shape=(1, 8, 8), classes=7)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert sys.modules["timm"].calls[-1] == ("plain18", False, 1, 7, {})
    assert models.parameters("timm:plain18", shape=(1, 8, 8), classes=7) == (9 + 1) * 4 + (4 + 1) * 7
    for _ in range(2):
        models.build("timm:plain18", shape=(1, 8, 8), classes=7)
    assert len(sys.modules["timm"].calls) == 4 + 1, "four networks and one trial"
    assert models.build("timm:fixed_224", shape=(3, 8, 12), classes=7)(torch.zeros(1, 3, 8, 12)).shape == (1, 7)
    assert sys.modules["timm"].calls[-1][-1] == {"img_size": (8, 12)}


def test_a_network_that_reads_tensors_in_its_constructor(install: Installed) -> None:
    install("timm/__init__.py", TIMM)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert models.parameters("timm:counts", shape=(2, 8, 8), classes=3) == (18 + 1) * 4 + (4 + 1) * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_torchvision_builds_an_untrained_network(install: Installed) -> None:
    install("torchvision/__init__.py", TORCHVISION)
    install("torchvision/models.py", TORCHVISION_MODELS)
    for name, more in [
        ("resnet18", {}),
        ("vit_b_16", {"image_size": 4}),
        ("googlenet", {"aux_logits": False, "init_weights": True}),
    ]:
        models.build(f"torchvision:{name}", shape=(3, 4, 4), classes=7)
        assert sys.modules["torchvision.models"].calls[-1] == (name, None, 7, more)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("timm:plain81", (3, 8, 8), r"no such network in timm 9\.8\.7: did you mean plain18\? timm.list_models\(\)"),
        ("timm:two_outputs", (3, 8, 8), r"timm:two_outputs is no classifier"),
        ("timm:fails", (3, 8, 8), "does not take images of 8x8 pixels and 3 channels: ValueError: cannot be made$"),
        ("timm:plain18", (3, 2, 2), "timm:plain18 does not take images of 2x2 pixels and 3 channels: RuntimeError"),
        ("torchvision:detector", (3, 4, 4), r"no such network in torchvision 7\.6\.5: torchvision\.models"),
        ("torchvision:resnet18", (1, 4, 4), "take images of 3 channels, not 1: choose one of timm's"),
        ("torchvision:resnet18", (3, 8, 8), "does not take images of 8x8 pixels"),
    ],
)
def test_what_cannot_be_built_says_why(install: Installed, name: str, shape: tuple[int, int, int], reason: str) -> None:
    install("timm/__init__.py", TIMM)
    install("torchvision/__init__.py", TORCHVISION)
    install("torchvision/models.py", TORCHVISION_MODELS)
    with pytest.raises(TaskError, match=reason):
        models.check(name, shape=shape)
    with pytest.raises(TaskError, match=reason):
        models.build(name, shape=shape, classes=7)
    with pytest.raises(TaskError, match=reason):
        models.parameters(name, shape=shape, classes=7)


def test_identity_has_the_version_without_the_build(install: Installed) -> None:
    install("timm/__init__.py", TIMM)
    install("torchvision/__init__.py", TORCHVISION)
    install("torchvision/models.py", TORCHVISION_MODELS)
    assert models.network_key("timm:plain18") == {"model": "timm:plain18", "library": "timm 9.8.7"}
    assert models.network_key("torchvision:resnet18")["library"] == "torchvision 7.6.5"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed(install: Installed, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    expected = rf"a network of {library}'s needs {library}, .*: pip install 'ticketry\[{library}\]'"
    for act in (models.network_key, lambda name: models.check(name, shape=(3, 4, 4))):
        with pytest.raises(MissingExtraError, match=expected) as caught:
            act(f"{library}:resnet18")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_torchvision_that_cannot_be_imported(install: Installed) -> None:
    install("torchvision/__init__.py", BROKEN)
    expected = (
        r"^torchvision is installed but cannot be imported \(RuntimeError: operator torchvision::nms does not exist\): "
        "install it anew; torch .* and torchvision must be builds that belong together$"
    )
    with pytest.raises(TaskError, match=expected):
        models.check("torchvision:resnet18", shape=(3, 32, 32))


@pytest.mark.parametrize("source", [BROKEN, None])
def test_a_timm_whose_torchvision_is_missing_or_broken(
    install: Installed, monkeypatch: pytest.MonkeyPatch, source: str | None
) -> None:
    install("timm/__init__.py", "import torchvision")
    if source is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:
        install("torchvision/__init__.py", source)
    with pytest.raises(TaskError, match=r"^timm is installed but cannot be imported .*torchvision"):
        models.check("timm:resnet18", shape=(3, 32, 32))
