"""Registered names (built in, of installed packages, of the user) and digests of their source code."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import ticketry
from installed import install, site
from ticketry.choices import did_you_mean
from ticketry.core.score import source_of
from ticketry.errors import PluginError, TaskError, UsageError
from ticketry.registry import GROUPS, Registry, digest_defining_source, digest_source
from ticketry.tasks import catalogue

__all__ = ["site"]  # a fixture


def registry(**options: Any) -> Registry[Any]:
    return Registry("shape", "ticketry.shapes", {"pi": "math:pi", "join": "os.path:join"}, **options)


def test_built_in_names(monkeypatch):
    shapes = Registry("shape", "ticketry.shapes", {"wave": "colorsys:rgb_to_hsv"})
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert (shapes.names(), shapes.find_origin("wave")) == (("wave",), "built in")
    assert "colorsys" not in sys.modules, "imported when it is requested"
    shapes = registry()
    assert shapes.names() == ("pi", "join")
    assert shapes.get("pi") == 3.141592653589793
    assert shapes.find_origin("join") == "built in"
    assert "pi" in shapes
    assert "circle" not in shapes


def test_names_of_an_installed_package(site):
    (site / "round_shapes.py").write_text("class Circle:\n    corners = 0\n")
    install(site, "round-shapes", {"circle": "round_shapes:Circle", "module": "round_shapes"})
    install(site, "others", {"circle": "nothing:Here"}, group="ticketry.colours")
    shapes = registry(needs=("corners",))
    assert shapes.names() == ("pi", "join", "circle", "module")
    assert shapes.find_origin("circle") == "round-shapes 1.2"
    assert shapes.find_target("circle") == "round_shapes:Circle"
    assert "round_shapes" not in sys.modules
    assert shapes.get("circle").corners == 0
    assert registry().get("module") is sys.modules["round_shapes"]


def test_user_code_is_imported_from_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "own_shapes").mkdir()
    (tmp_path / "own_shapes" / "__init__.py").write_text("class Square:\n    side = 2\n")
    (tmp_path / "own_shapes" / "cube.py").write_text("corners = 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    shapes = registry()
    assert shapes.get("own_shapes:Square.side") == 2
    assert shapes.get("own_shapes:cube").corners == 8, "a module of a package, which it does not import itself"
    assert shapes.find_origin("own_shapes:Square") == "own_shapes"


def test_a_user_module_is_an_object_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "own_forms" / "deep").mkdir(parents=True)
    for file in ("own_cone.py", "own_forms/__init__.py", "own_forms/ring.py", "own_forms/deep/knot.py"):
        (tmp_path / file).write_text(f"where = {file!r}\ncorners = 1\n")
    (tmp_path / "pi.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    shapes = registry(modules=True)
    own = {"own_cone": "own_cone.py", "own_forms": "own_forms/__init__.py", "own_forms.ring": "own_forms/ring.py"}
    for name, file in {**own, "own_forms.deep.knot": "own_forms/deep/knot.py"}.items():
        assert shapes.is_external(name)
        assert name not in sys.modules, "asking does not run its code"
        assert shapes.get(name).where == file
        assert shapes.find_target(name) == shapes.find_origin(name) == name
        assert shapes.digest_source(name) == registry().digest_source(f"{name}:where")
    assert not shapes.is_external("pi"), "built-in names come first"
    assert shapes.get("pi") == 3.141592653589793
    assert registry().is_external("own_cone") is False, "only where modules are objects"


@pytest.mark.parametrize("name", ["numpy", "os.absent", "absent.module", "a b", "", "x."])
def test_names_that_are_not_user_modules(name, tmp_path, monkeypatch):
    """Installed modules need a dot, for their names are near to what is mistyped."""
    monkeypatch.chdir(tmp_path)
    shapes = registry(modules=True)
    assert not shapes.is_external(name)
    with pytest.raises(UsageError, match=r"is not known: pi, join; or your own as package.module or NAME for NAME.py"):
        shapes.get(name)


def test_an_installed_package_s_module_by_its_dotted_name(site):
    (site / "their_forms").mkdir()
    (site / "their_forms" / "disc.py").write_text("corners = 0\n")
    shapes = registry(modules=True, needs=("corners",))
    assert shapes.is_external("their_forms.disc")
    assert shapes.get("their_forms.disc").corners == 0
    with pytest.raises(UsageError, match=r"'xml.dom' is not known: it has no corners"):
        shapes.get("xml.dom")


def test_a_file_with_the_name_of_another_module_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("corners = 3\n")
    import colorsys

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"colorsys.py in .* has the name of the module .*so rename your file") as told:
        registry(modules=True).get("colorsys")
    assert str(colorsys.__file__) in str(told.value)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import absent_package", "bad:Thing", "ModuleNotFoundError: No module named 'absent_package'"),
        ("raise SystemExit(3)", "bad:Thing", "SystemExit: 3"),
        ("class Other: corners = 1", "bad:Thing", r"the module bad \(.*bad.py\) has no 'Thing'"),
        ("class Thing: sides = 1", "bad:Thing", "it has no corners, and a shape has corners and sides"),
        ("", "not a module", "the module 'not a module' cannot be imported"),
    ],
)
def test_a_broken_package_is_named_and_disturbs_nothing(site, caplog, source, target, reason):
    (site / "bad.py").write_text(source)
    (site / "good.py").write_text("class Thing:\n    corners = sides = 4\n")
    install(site, "bad-shapes", {"bad": target}, version="0.1")
    install(site, "good-shapes", {"good": "good:Thing"})
    shapes = Registry[Any]("shape", "ticketry.shapes", {}, needs=("corners", "sides"))
    assert shapes.names() == ("bad", "good")
    with pytest.raises(
        PluginError, match=rf"the shape 'bad' of the package bad-shapes 0\.1 cannot be used: .*{reason}"
    ):
        shapes.get("bad")
    assert shapes.get("good").corners == 4
    assert list(shapes.load_usable_objects()) == ["good"]
    assert [record.getMessage() for record in caplog.records if "bad-shapes 0.1" in record.getMessage()]


def test_a_built_in_name_stays_the_built_in_one(site, caplog):
    install(site, "greedy", {"pi": "greedy:Pi", "tau": "greedy:Tau", "mine": "json:loads"})
    shapes = registry(aliases={"tau": "pi"})
    with caplog.at_level(logging.WARNING):
        assert shapes.get("pi") == shapes.get("tau") == 3.141592653589793
        assert shapes.names() == ("pi", "join", "mine")
    assert shapes.find_origin("tau") == "built in"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once each"
    assert "the package greedy 1.2 offers a shape 'pi'" in told[0]
    assert "name the other as greedy:Pi" in told[0]


def test_two_packages_of_one_name_are_an_error_until_one_is_chosen(site):
    install(site, "first", {"circle": "json:loads"})
    install(site, "second", {"circle": "json:dumps", "oval": "json:dumps"})
    shapes = registry()
    assert shapes.names() == ("pi", "join", "circle", "oval")
    assert shapes.find_origin("circle") == "first 1.2 and second 1.2"
    with pytest.raises(PluginError, match=r"first 1.2 \(json:loads\) and second 1.2 \(json:dumps\)"):
        shapes.get("circle")
    assert shapes.get("json:dumps") is shapes.get("oval")


def test_the_first_of_two_installed_versions_counts(site, tmp_path, monkeypatch):
    install(site, "twice", {"circle": "json:loads"}, version="2.0")
    install(tmp_path / "older", "twice", {"circle": "json:dumps", "oval": "json:dumps"}, version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "older")])
    assert registry().find_origin("circle") == "twice 2.0"
    assert "oval" not in registry()


def test_damaged_metadata_of_one_package_does_not_hide_the_others(site, caplog):
    info = install(site, "damaged", {})
    (info / "entry_points.txt").write_text("[ticketry.shapes]\nno equals sign\n")
    (install(site, "binary", {}) / "entry_points.txt").write_bytes(b"\xff\xfe\x00ticketry.")
    install(site, "whole", {"circle": "json:loads"})
    assert registry().names() == ("pi", "join", "circle")
    assert "the entry points of the package damaged cannot be read" in caplog.text


def test_an_unknown_name():
    with pytest.raises(
        UsageError, match=r"shape 'circle' is not known: pi, join, jn; or your own as package.module:ob"
    ):
        registry(aliases={"jn": "join"}).get("circle")
    with pytest.raises(TaskError, match=r"no shape 'joined', but pi, join; .*; did you mean join\?$"):
        registry(error=TaskError, unknown="no {kind} {name!r}, but {names}").find_origin("joined")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "absent_module:Thing",
            "shape 'absent_module:Thing' is not known: the module 'absent_module' cannot be imported",
        ),
        (":Thing", "cannot be imported"),
        ("math:", r"the module math \(.*\) has no ''"),
        ("math:pie", "has no 'pie'"),
        ("math:e", "it has no corners, and a shape has corners"),
    ],
)
def test_user_names_that_cannot_be_used(name, reason):
    with pytest.raises(TaskError, match=reason):
        registry(error=TaskError, needs=("corners",)).get(name)


def test_make_is_called_with_name_and_object():
    def positive(name: str, found: Any) -> str:
        if found < 0:
            raise UsageError("it is below 0")
        return f"{name}: {found:.2f}"

    shapes = registry(make=positive)
    assert shapes.get("pi") == "pi: 3.14"
    assert shapes.get("math:e") == "math:e: 2.72"


@pytest.mark.parametrize(
    ("fails", "reason"), [("raise OSError('no disk')", "OSError: no disk"), ("raise SystemExit(3)", "SystemExit: 3")]
)
def test_an_object_that_cannot_be_created_is_named_and_disturbs_nothing(site, caplog, fails, reason):
    (site / "made.py").write_text(
        f"class Bad:\n    def __init__(self):\n        {fails}\n\nclass Good:\n    corners = 4\n"
    )
    install(site, "made-shapes", {"bad": "made:Bad", "good": "made:Good"})
    shapes = Registry[Any]("shape", "ticketry.shapes", {}, make=lambda name, found: found())
    with pytest.raises(PluginError, match=rf"'bad' of the package made-shapes 1\.2 cannot be used: .* made: {reason}"):
        shapes.get("bad")
    with pytest.raises(UsageError, match=rf"shape 'made:Bad' is not known: it cannot be made: {reason}"):
        shapes.get("made:Bad")
    assert list(shapes.load_usable_objects()) == ["good"]
    assert "made-shapes 1.2" in caplog.text


def test_did_you_mean():
    assert did_you_mean("ResNet20", ["resnet-20", "vgg-16"]) == "did you mean resnet-20? "
    assert did_you_mean("transformer", ["resnet-20"]) == ""


def test_groups_are_known_and_an_unknown_group_gets_a_suggestion(site, caplog):
    sources = [path.read_text("utf-8") for path in Path(ticketry.__file__).parent.rglob("*.py")]
    made = {
        group
        for source in sources
        if "Registry(" in source
        for group in re.findall(r'^ +(?:"[a-z ]+", )?"(ticketry\.[a-z_]+)",', source, re.MULTILINE)
    }
    assert len(made) > 8
    assert made <= GROUPS
    install(site, "misspelt", {"mine": "misspelt:mine"}, group="ticketry.score")
    assert Registry("shape", "ticketry.shapes", {}).names() == ()
    assert (
        "the package misspelt 1.2 has entry points in the group ticketry.score, which ticketry does not have"
        in caplog.text
    )
    assert "did you mean" in caplog.text
    assert "ticketry.scores" in caplog.text


# -- digests of source code --------------------------------------------------------------------------------------------

FILES = {
    "mine/__init__.py": "from .everything import NOTHING\n",
    "mine/everything.py": "NOTHING = 0\n",
    "mine/score.py": "from .sums import total\nfrom . import tables\n\ndef score():\n    from mine.late import late\n",
    "mine/sums.py": "total = 1\nif False:\n    from .deep.er import more\n    from .score import s  # a cycle\n",
    "mine/tables.py": "import math, ticketry, torch\n",
    "mine/late.py": "import beside\n",
    "mine/deep/__init__.py": "",
    "mine/deep/er.py": "import mine.last\n\nmore = 2\n",
    "mine/last.py": "not Python\n",
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


def expected_digest(folder: Path, *reached: str) -> str:
    """Return the digest of the score's file, followed by name and source of each other module."""
    whole = (folder / "mine" / "score.py").read_bytes()
    for name in reached:
        whole += f"\0{name.removesuffix('.py').replace('/', '.')}\0".encode() + (folder / name).read_bytes()
    return hashlib.sha256(whole).hexdigest()


def forget(*prefixes: str) -> None:
    """Unload modules by the start of their names, as in another process."""
    for name in [name for name in sys.modules if name.startswith(prefixes)]:
        del sys.modules[name]


def test_digest_covers_imported_modules_beside_the_package(own: Path) -> None:
    assert digest_source("mine.score:score") == expected_digest(own, "beside.py", *REACHED)


def test_digest_of_an_installed_package_covers_no_other_package(own: Path) -> None:
    install(own, "mine", {})
    assert digest_source("mine.score:score") == expected_digest(own, *REACHED)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_digest_changes_with_the_modules_that_are_imported(own: Path, name: str) -> None:
    before = digest_source("mine.score:score")
    (own / name).write_text((own / name).read_text() + "# changed\n")
    forget("mine", "beside")
    changed = digest_source("mine.score:score") != before
    assert changed == (name in {"mine/score.py", "beside.py", *REACHED})


@pytest.mark.parametrize("name", ["mine.score", "mine.late"])
def test_digest_of_a_loaded_module_stays_until_it_is_reloaded(own: Path, name: str, caplog) -> None:
    before = digest_source("mine.score:score")
    module, file = importlib.import_module(name), own / f"{name.replace('.', '/')}.py"
    assert digest_source("mine.score:score") == before
    file.write_text(file.read_text() + "# changed\n")
    assert digest_source("mine.score:score") == digest_source("mine.score:score") == before
    assert [f"{file} was edited" in told.getMessage() for told in caplog.records] == [True]
    importlib.reload(module)
    assert digest_source("mine.score:score") != before


def test_digest_ignores_which_modules_are_loaded(own: Path) -> None:
    before = digest_source("mine.score:score")
    for name in ("mine.unused", "mine.late"):
        importlib.import_module(name)
    assert digest_source("mine.score:score") == before


def test_digest_of_a_module_without_own_imports_is_that_of_its_file(own: Path) -> None:
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


def test_digests_of_scores_tasks_and_variants_cover_their_imports(site: Path) -> None:
    for name, text in (("my_score", SCORE), ("my_task", TASK), ("my_variant", VARIANT), ("my_sums", "total = 1\n")):
        (site / f"{name}.py").write_text(text)

    def digests() -> list[object]:
        import my_variant

        task = catalogue.get("my_task:Mine")
        return [source_of("my_score:largest"), task.key()["source"], my_variant.Own.identity()["source"]]

    before = digests()
    assert before == digests()
    (site / "my_sums.py").write_text("total = 2\n")
    forget("my_")
    after = digests()
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_digest_of_a_variant_is_that_of_its_loaded_class(site: Path) -> None:
    file = site / "my_own_variant.py"
    file.write_text(VARIANT.replace("from my_sums import total\n", ""))
    import my_own_variant

    before = my_own_variant.Own.identity()
    file.write_text(file.read_text() + "# changed\n")
    assert my_own_variant.Own.identity() == before
    importlib.reload(my_own_variant)
    assert my_own_variant.Own.identity() != before
