"""Packages that are installed for a test: folders on sys.path with the metadata that an installer writes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def install(
    folder: Path, name: str, offers: dict[str, str], *, group: str = "ticketry.shapes", version: str = "1.2"
) -> Path:
    """An installed package in `folder`: its metadata, with entry points name -> target in a group."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]", *(f"{one} = {target}" for one, target in offers.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, seen by this process; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def install_project(project: Path, folder: Path) -> Path:
    """A project with a pyproject.toml, put into `folder` as an installer would: its packages and its metadata.

    Returns:
        The folder.
    """
    tables = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    for source in project.glob("*/__init__.py"):
        shutil.copytree(source.parent, folder / source.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    offers = tables["entry-points"]
    info = install(folder, tables["name"], {}, version=tables["version"])
    lines = [
        line for group in offers for line in (f"[{group}]", *(f"{name} = {at}" for name, at in offers[group].items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
