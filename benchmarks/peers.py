"""Scripts of other repositories, run unchanged in this process. None is part of this repository."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType


def unpacked(clone: Path, names: Sequence[str], folder: Path) -> Path:
    """The first of these files and what it imports, out of a clone with or without a work tree."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (clone / name).is_file():
            shutil.copy(clone / name, target)
        else:
            content = subprocess.run(["git", "-C", str(clone), "show", f"HEAD:{name}"], capture_output=True, check=True)
            target.write_bytes(content.stdout)
    return folder / names[0]


@contextlib.contextmanager
def as_script(
    script: Path, words: Sequence[str], root: Path, modules: Mapping[str, ModuleType]
) -> Iterator[io.StringIO]:
    """Run a script in `root` with some modules replaced; yield its output."""
    before = dict(sys.modules), list(sys.path), list(sys.argv), Path.cwd(), random.getstate()
    printed = io.StringIO()
    sys.modules.update(modules)
    sys.path.insert(0, str(root))
    sys.argv = [str(script), *words]
    os.chdir(root)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            yield printed
    finally:
        known, sys.path[:], sys.argv[:], folder, state = before
        os.chdir(folder)
        random.setstate(state)
        for name in modules:
            del sys.modules[name]
            if name in known:
                sys.modules[name] = known[name]
