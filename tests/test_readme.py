"""README's example runs as it stands there, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(
        r"<!-- tests/test_readme.py runs this block -->\n```python\n(.*?)```", README.read_text(), re.S
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(64, 784, generator=draw), torch.randint(0, 10, (64,), generator=draw)) for _ in range(4)]
    names: dict[str, object] = {"batches": batches, "loss_function": torch.nn.functional.cross_entropy}
    exec(code, names)  # the point of this test
    out = capsys.readouterr().out
    table = out.partition("Compiled for")[0]
    assert table in README.read_text(), "README shows what the example prints"
    assert "as fast as eager torch" in out or "SLOWER" in out
    for name, kept in names["mask"].items():  # type: ignore[attr-defined]
        weight = dict(names["model"].named_parameters())[name]  # type: ignore[attr-defined]
        assert not weight[~kept].any()
        assert weight[kept].all()


def test_it_is_short() -> None:
    text = re.sub(r"<!--.*?-->", "", README.read_text(), flags=re.DOTALL)
    assert len(text.split()) <= 900


def test_links_lead_somewhere() -> None:
    folders = (README.parent.glob(pattern) for pattern in ("*.md", "docs/**/*.md", "research/*.md"))
    for page in [page for folder in folders for page in folder]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
