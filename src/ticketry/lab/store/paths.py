"""Parse the addresses of stores, and define the paths of all files of a store; no path leads out of its folder.

A store is a folder, or has the URL of a store that several machines share. A shared store has a mirror, a local folder
in the user's cache, so that code for folders also works for shared stores. The name of an object is its path relative
to the store's folder, with ``/`` as separator. The module needs neither torch nor the network.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ticketry import files
from ticketry.errors import StoreError, UsageError
from ticketry.lab.store.files import explain_os_errors, path_exists

BUCKETS = ("s3", "gs", "az")
"""URL schemes that obstore opens: Amazon S3 and compatible services, Google Cloud Storage, Azure Blob Storage."""
SCHEMES = (*BUCKETS, "file")
_MIRROR, _FACTS = "store", "address.json"
"""Folder of a mirror, and the file next to it with the store's URL and the mirror's id."""


def is_url(address: str | Path) -> bool:
    return isinstance(address, str) and "://" in address


def canonical_url(address: str) -> str:
    """Return a URL in its canonical form; raise `UsageError` if the URL is invalid or contains credentials."""
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise UsageError(f"stores have no {scheme[:20]}:// addresses: name a folder, or a URL with {known}")
    parts = urlsplit(f"{scheme}://{rest}")
    if "@" in parts.netloc:
        raise UsageError(
            f"the address of a store ({scheme}://…) holds a user name or password before the @: leave it out."
            " Credentials come from the provider's usual place (environment, instance role), and are never written down"
        )
    if parts.query or parts.fragment or "?" in rest or "#" in rest:
        raise UsageError(
            f"the address of a store ({scheme}://{parts.netloc}…) ends at its path: leave out what follows the ? or #,"
            " such as a signature. Credentials come from the provider's usual place (environment, instance role)"
        )
    names = [unquote(name) for name in parts.path.split("/") if name]
    if any(name in (".", "..") or not name.isprintable() or "\\" in name for name in names):
        raise UsageError(f"the address {address!r:.200} has a part that is not a plain name")
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not names:
            raise UsageError(f"{address!r:.200}: a shared folder is written file:///path/to/folder")
    elif not parts.netloc:
        raise UsageError(f"{address!r:.200}: a shared store is written {scheme}://bucket/folder")
    return "/".join([f"{scheme}://{'' if scheme == 'file' else parts.netloc}", *names])


def local_folder(address: str | Path) -> Path:
    """Return the local folder of a store: the address itself, or for a URL the mirror of the shared store."""
    if not is_url(address):
        return Path(address)
    url = canonical_url(str(address))
    folder = files.cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:32]
    if why := files.why_not_private(folder):
        raise StoreError(f"{why}: remove write permission for others, or set TICKETRY_CACHE to a folder of your own")
    if _read_mirror_facts(folder).get("address") != url:
        facts = json.dumps({"address": url, "mirror": uuid.uuid4().hex}).encode()
        try:
            files.write_atomically(folder / _FACTS, facts, private=True)
        except OSError as error:
            raise StoreError(
                f"cannot write {folder}: {error.strerror}; set TICKETRY_CACHE to another folder"
            ) from error
    return folder / _MIRROR


def shared_url(place: Path) -> str | None:
    """Return the URL of the shared store whose mirror is the folder `place`; None if the folder is not a mirror."""
    place = place.absolute()
    if place.name != _MIRROR or place.parent.parent != files.cache_folder() / "stores":
        return None
    return _read_mirror_facts(place.parent).get("address")


def split_address(url: str) -> tuple[str, tuple[str, ...]] | None:
    """Split the URL of a run or ticket into the store's URL and the folder names below it; None for other URLs."""
    parts = canonical_url(url).split("/")
    if "runs" not in parts[3:-1]:
        return None
    at = len(parts) - 1 - parts[::-1].index("runs")
    return "/".join(parts[:at]), tuple(parts[at:])


def read_mirror_id(place: Path) -> str:
    """Return the random id of the mirror in the folder `place`; mirrors on other machines have other ids."""
    return _read_mirror_facts(place.parent).get("mirror", "")


def display_address(place: str | Path) -> str:
    """Return a path for messages to the user: a path inside a mirror is shown with the URL of the shared store."""
    path = Path(place)
    for folder in (path, *path.parents):
        if url := shared_url(folder):
            return "/".join([url, *path.relative_to(folder).parts])
    return str(place)


def _read_mirror_facts(folder: Path) -> dict[str, str]:
    try:
        found = files.parse_json(files.read_bytes(folder / _FACTS, most=1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def ticket_folder(run: Path, replicate: int, level: int) -> Path:
    """Return the folder of a ticket, given the folder `run` of the ticket's run."""
    return run / "tickets" / f"replicate-{replicate}-level-{level:02d}"


def blob_name(digest: str) -> str:
    """Return the object name of a tensor file with this SHA-256."""
    return f"blobs/{digest[:2]}/{digest}.safetensors"


def results_name(trajectory: str) -> str:
    """Return the common prefix of the object names of all results of the training with the key `trajectory`."""
    return f"results/{trajectory[:2]}/{trajectory}/"


def result_name(trajectory: str, step: int) -> str:
    """Return the object name of the result at a step of the training with the key `trajectory`."""
    return f"{results_name(trajectory)}{step}.json"


def memo_name(kind: str, key: str) -> str:
    """Return the object name of the value of some `kind` (such as "masks") that is stored under `key`."""
    return f"memo/{kind}/{key[:2]}/{key}.json"


def partial_name(trajectory: str, step: int, digest: str) -> str:
    """Return the object name of the checkpoint of an unfinished segment at a step; `digest` is its SHA-256."""
    return f"partial/{trajectory}-{step}-{digest}.safetensors"


class Paths:
    """Returns the paths of a store's files; a name or link that leads out of the store raises `OutsideError`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "store.json"
        self.blobs = root / "blobs"
        self.results = root / "results"
        self.partial = root / "partial"
        self.memo = root / "memo"
        self.runs = root / "runs"
        self.evidences = root / "evidence"
        self.campaigns = root / "campaigns"
        self.live = root / "live"
        self.moving = root / "moving.json"
        """File that exists while another store is being moved into this folder, and names that store."""

    def has_folders(self) -> bool:
        """Return whether the folder has subfolders that only stores have; `StoreError` if that cannot be found out."""
        return any(map(path_exists, (self.results, self.memo, self.runs, self.evidences, self.campaigns)))

    def object_name(self, path: Path) -> str:
        """Return the path relative to the store's folder, with ``/``; in a bucket, the file's object has this name."""
        return path.relative_to(self.root).as_posix()

    def blob(self, digest: str) -> Path:
        return self._path_inside_store(blob_name(digest))

    def result(self, trajectory: str, step: int) -> Path:
        return self._path_inside_store(result_name(trajectory, step))

    def memo_file(self, kind: str, key: str) -> Path:
        return self._path_inside_store(memo_name(kind, key))

    def lock(self, trajectory: str) -> Path:
        """Return the path of the file that a process locks during the training with the key `trajectory`."""
        return self._path_inside_store(f"{results_name(trajectory)}lock")

    def partial_file(self, trajectory: str, step: int, digest: str) -> Path:
        return self._path_inside_store(partial_name(trajectory, step, digest))

    def partial_folder(self, trajectory: str, step: int) -> Path:
        """Return the folder of a checkpoint that several processes write together, each a part of the tensors."""
        return self._path_inside_store(f"partial/{trajectory}-{step}.parts")

    def run(self, name: str) -> Path:
        """Return the folder of a run: run.json, run.toml, report.html, figures and tickets."""
        return files.join_inside(self.root, "runs", name)

    def evidence(self, name: str) -> Path:
        """Return the path of the record of a verification or of a stability analysis."""
        return files.join_inside(self.root, "evidence", f"{name}.json")

    def campaign(self, name: str) -> Path:
        """Return the path of the record of a campaign; the campaign's pages are in the same folder."""
        return files.join_inside(self.root, "campaigns", f"{name}.json")

    def record(self, kind: str, name: str) -> Path:
        """Return the path of a record; `kind` is ``run``, ``evidence`` or ``campaign``."""
        return self.run(name) / "run.json" if kind == "run" else getattr(self, kind)(name)

    def costs(self, name: str) -> Path:
        """Return the path of a file with measured costs of networks."""
        return files.join_inside(self.root, "costs", f"{name}.json")

    def live_file(self, driver: str, name: str) -> Path:
        """Return the file of a message between a driver and its workers, which is deleted when the driver ends."""
        return files.join_inside(self.root, "live", driver, name)

    def unused_damaged_path(self, path: Path) -> Path:
        """Return an unused path in the folder ``damaged``, to which a repair can move the file or folder `path`."""
        place = self.root / "damaged" / path.relative_to(self.root)
        number = 1
        with explain_os_errors(place, "look for"):
            while files.exists(place):
                number += 1
                place = place.with_name(f"{path.name}.{number}")
        return files.require_inside(self.root, place)

    # -- all files of a kind -----------------------------------------------------------------------------------------
    #
    # A link that leads out of the store is an error, so that nothing outside is read or deleted; so is a folder that
    # cannot be read, since its contents may be needed.

    def run_records(self) -> Iterator[Path]:
        return self._list_matching(self.runs, "*/run.json")

    def evidence_records(self) -> Iterator[Path]:
        """Yield the paths of the records of verifications, stability analyses and timings."""
        return self._list_matching(self.evidences, "*.json")

    def campaign_records(self) -> Iterator[Path]:
        return self._list_matching(self.campaigns, "*.json")

    def tickets(self) -> Iterator[Path]:
        """Yield the folders of all tickets of all runs."""
        return self._list_matching(self.runs, "*/tickets/*")

    def pages(self) -> Iterator[Path]:
        """Yield the HTML pages of reports."""
        for folder, pattern in (
            (self.root, "report.html"),
            (self.runs, "*/report.html"),
            (self.evidences, "*.html"),
            (self.campaigns, "*.html"),
        ):
            yield from self._list_matching(folder, pattern)

    def blob_files(self) -> Iterator[Path]:
        return self._list_matching(self.blobs, "*/*.safetensors")

    def result_files(self) -> Iterator[Path]:
        return self._list_matching(self.results, "*/*/*.json")

    def memo_files(self) -> Iterator[Path]:
        return self._list_matching(self.memo, "*/*/*.json")

    def locks(self) -> Iterator[Path]:
        return self._list_matching(self.results, "*/*/lock")

    def partial_files(self, trajectory: str = "*") -> Iterator[Path]:
        """Yield the files of checkpoints of the training with the key `trajectory`, by default of all trainings."""
        return self._list_matching(self.partial, f"{trajectory}-*.safetensors")

    def partial_folders(self, trajectory: str = "*") -> Iterator[Path]:
        """Yield the folders of sharded checkpoints of the training `trajectory`, by default of all trainings."""
        return self._list_matching(self.partial, f"{trajectory}-*.parts")

    def live_files(self, name: str) -> Iterator[Path]:
        """Yield, for each driver, the path of its message `name`."""
        return self._list_matching(self.live, f"*/{name}")

    def leftovers(self) -> Iterator[Path]:
        """Yield files that killed processes may have left behind: temporary files, unfinished tickets, messages."""
        with explain_os_errors(self.root, "read"):
            below = files.iterate_below(self.root)
            found = [path for path in below if path.name.startswith(".") and path.name.endswith((".tmp", ".old"))]
        yield from self._require_paths_inside_store(found)
        yield from self._list_matching(self.live, "*/*")

    def _list_matching(self, folder: Path, pattern: str) -> Iterator[Path]:
        with explain_os_errors(folder, "read"):
            found = files.list_matching(folder, pattern)
        yield from self._require_paths_inside_store(found)

    def _require_paths_inside_store(self, paths: list[Path]) -> Iterator[Path]:
        sound = set[Path]()  # each folder is resolved once, not for each of thousands of files in it
        for path in paths:
            if path.parent not in sound:
                sound.add(files.require_inside(self.root, path.parent))
            yield files.require_inside(self.root, path) if path.is_symlink() else path

    def _path_inside_store(self, name: str) -> Path:
        return files.join_inside(self.root, *name.split("/"))
