"""Check that paths from untrusted files stay inside a folder; also the file functions of `ticketry_engine`."""

from __future__ import annotations

import os
from pathlib import Path

from ticketry.errors import OutsideError
from ticketry_engine.support.files import (
    beside as beside,
)
from ticketry_engine.support.files import (
    cache_folder as cache_folder,
)
from ticketry_engine.support.files import (
    content_of as content_of,
)
from ticketry_engine.support.files import (
    file_digest as file_digest,
)
from ticketry_engine.support.files import (
    flush as flush,
)
from ticketry_engine.support.files import (
    make_folder as make_folder,
)
from ticketry_engine.support.files import (
    parse_json as parse_json,
)
from ticketry_engine.support.files import (
    private_content_of as private_content_of,
)
from ticketry_engine.support.files import (
    reason_of as reason_of,
)
from ticketry_engine.support.files import (
    regular as regular,
)
from ticketry_engine.support.files import (
    replacing as replacing,
)
from ticketry_engine.support.files import (
    why_not_private as why_not_private,
)
from ticketry_engine.support.files import (
    write_atomically as write_atomically,
)

_LONGEST_NAME = 255
_INVALID_NAMES = ("", ".", "..")
_SEPARATORS = "/\\" if os.sep == "/" else "/\\:"


def join_inside(root: Path, *names: str) -> Path:
    """Return the path `root` / names[0] / names[1] …, for names that come from an untrusted file.

    Raises:
        OutsideError: if a name is not a plain file name (but a path, ``..``, empty, too long or not printable), or if a
            link on the path leads outside `root`.
    """
    for name in names:
        plain = isinstance(name, str) and name not in _INVALID_NAMES and name.isprintable()
        if not plain or any(letter in name for letter in _SEPARATORS) or len(os.fsencode(name)) > _LONGEST_NAME:
            raise OutsideError(
                f"{name!r:.80} is not a file name in {root}: the file that contains it is damaged or forged"
            )
    return require_inside(root, root.joinpath(*names))


def require_inside(root: Path, path: Path) -> Path:
    """Return `path` if it is inside `root` after resolving links; else raise `OutsideError`."""
    real = os.path.realpath(root)
    if os.path.commonpath([real, os.path.realpath(path)]) != real:
        raise OutsideError(f"{path} is a link to outside of {root} and is not followed")
    return path
