"""What the digest of one's own source is of: the module and what it reaches, whatever else is loaded or lies beside."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from installed import install, site
from ticketry.core.score import source_of
from ticketry.registry import digest_defining_source, digest_source
from ticketry.tasks import catalogue

__all__ = ["site"]  # a fixture

FILES = {
    "mine/__init__.py": "from .everything import NOTHING\n",
    "mine/everything.py": "NOTHING = 0\n",
    "mine/score.py": "from .sums import total\nfrom . import tables\n\ndef score():\n    from mine.late import late\n",
    "mine/sums.py": "total = 1\nif False:\n    from .deep.er import more\n    from .score import s  # in a circle\n",
    "mine/tables.py": "import math, ticketry, torch\n",
    "mine/late.py": "import beside\n",
    "mine/deep/__init__.py": "",
    "mine/deep/er.py": "import mine.last\n\nmore = 2\n",
    "mine/last.py": "this is no Python\n",
    "mine/unused.py": "",
    "beside.py": "",
}
REACHED = ("mine/deep/er.py", "mine/last.py", "mine/late.py", "mine/sums.py", "mine/tables.py")


@pytest.fixture
def own(site: Path) -> Path:
    (site / "mine" / "deep").mkdir(parents=True)
    for name, text in FILES.items():
        (site / name).write_text(text)
    return site


def by_hand(folder: Path, *reached: str) -> str:
    """Of the score's file, and then of each other's name and source."""
    whole = (folder / "mine" / "score.py").read_bytes()
    for name in reached:
        whole += f"\0{name.removesuffix('.py').replace('/', '.')}\0".encode() + (folder / name).read_bytes()
    return hashlib.sha256(whole).hexdigest()


def forget(*beginnings: str) -> None:
    """As in another process, in which no module of such a name is loaded."""
    for name in [name for name in sys.modules if name.startswith(beginnings)]:
        del sys.modules[name]


def test_of_a_folder_it_is_of_what_lies_beside_the_package_too(own: Path) -> None:
    assert digest_source("mine.score:score") == by_hand(own, "beside.py", *REACHED)


def test_of_an_installed_package_it_is_not_of_others(own: Path) -> None:
    install(own, "mine", {})
    assert digest_source("mine.score:score") == by_hand(own, *REACHED)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_a_change_is_seen_where_it_is_reached(own: Path, name: str) -> None:
    before = digest_source("mine.score:score")
    (own / name).write_text((own / name).read_text() + "# changed\n")
    forget("mine", "beside")
    changed = digest_source("mine.score:score") != before
    assert changed == (name in {"mine/score.py", "beside.py", *REACHED})


@pytest.mark.parametrize("name", ["mine.score", "mine.sums", "mine.late"])
def test_a_module_that_is_loaded_stays_what_it_is_until_it_is_loaded_again(own: Path, name: str, caplog) -> None:
    """As in a notebook: what runs is the source before the edit, and is not to be kept as what nobody has run."""
    before = digest_source("mine.score:score")
    module, file = importlib.import_module(name), own / f"{name.replace('.', '/')}.py"
    assert digest_source("mine.score:score") == before
    file.write_text(file.read_text() + "# changed\n")
    assert digest_source("mine.score:score") == digest_source("mine.score:score") == before
    assert [f"{file} was edited" in told.getMessage() for told in caplog.records] == [True]
    importlib.reload(module)
    assert digest_source("mine.score:score") != before


def test_a_variant_of_training_is_the_class_that_was_made(site: Path) -> None:
    file = site / "my_own_variant.py"
    file.write_text(VARIANT.replace("from my_sums import total\n", ""))
    import my_own_variant

    before = my_own_variant.Own.identity()
    file.write_text(file.read_text() + "# changed\n")
    assert my_own_variant.Own.identity() == before
    importlib.reload(my_own_variant)
    assert my_own_variant.Own.identity() != before


def test_what_is_loaded_plays_no_part(own: Path) -> None:
    before = digest_source("mine.score:score")
    for name in ("mine.unused", "mine.late"):
        importlib.import_module(name)
    assert digest_source("mine.score:score") == before


def test_of_a_module_that_reaches_none_it_is_that_of_its_file(own: Path) -> None:
    """As results were kept before others were looked at."""
    import beside

    assert digest_source("beside") == hashlib.sha256((own / "beside.py").read_bytes()).hexdigest()
    (own / "beside.py").write_text("import math\nimport ticketry\n\ndef one(): ...\n")
    importlib.reload(beside)
    assert digest_defining_source(beside.one) == hashlib.sha256((own / "beside.py").read_bytes()).hexdigest()
    assert digest_defining_source(len, digest_source) == ""


SCORE = "from my_sums import total\n\ndef largest(model, scope, *, batches=None, loss=None, seed=0): ...\n"
TASK = """
import ticketry as tk
import torch
from my_sums import total
from ticketry.tasks.task import Classification

class Mine(Classification):
    name = "mine"
    recipe = tk.Recipe(length="4it")
    def build(self): ...
    def load(self, data=None): ...
"""
VARIANT = """
from dataclasses import dataclass
from ticketry.lab.training.variant import Variant
from my_sums import total

@dataclass(frozen=True, kw_only=True)
class Own(Variant):
    name = "own_with_sums"
"""


def test_scores_tasks_and_variants_of_training_are_others_by_what_they_import(site: Path) -> None:
    for name, text in (("my_score", SCORE), ("my_task", TASK), ("my_variant", VARIANT), ("my_sums", "total = 1\n")):
        (site / f"{name}.py").write_text(text)

    def told() -> list[object]:
        import my_variant

        task = catalogue.get("my_task:Mine")
        return [source_of("my_score:largest"), task.key()["source"], my_variant.Own.identity()["source"]]

    before = told()
    assert before == told()
    (site / "my_sums.py").write_text("total = 2\n")
    forget("my_")
    after = told()
    assert all(one != other for one, other in zip(before, after, strict=True))
