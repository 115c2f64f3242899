"""Import the real timm and torchvision, also a torchvision without its compiled part."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

_OPERATORS = ("nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
_BACKWARD = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")

_defined: list[torch.library.Library] = []
"""The definitions end with these objects."""


def import_or_skip(library: str) -> ModuleType:
    """Import the library, or skip the test.

    A torchvision built for other GPU libraries cannot register its operators and fails to import. No network of either
    library uses them, so they are declared here without an implementation.
    """
    if not mend_torchvision():
        pytest.skip("torchvision is not installed: pip install 'ticketry[timm,torchvision]'")
    return pytest.importorskip(library, reason=f"{library} is not installed: pip install 'ticketry[{library}]'")


def mend_torchvision() -> bool:
    """Make torchvision importable; return whether it is installed. Transformers imports it if it is."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return True


def _declare_operators() -> None:
    if _defined:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in (*_OPERATORS, *(f"_{name}_backward" for name in _BACKWARD)):
        library.define(f"{name}(Tensor x) -> Tensor")
    _defined.append(library)
