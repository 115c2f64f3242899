"""The names of all files of a store. Names that come from the content of a file cannot lead outside of the store.

The name of an object is its path below the store's folder, separated by ``/``.

An object's name is its path below the store's folder, with ``/`` between.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ticketry.files import join_inside, require_inside
from ticketry.folders import exists, iterate_below, list_matching
from ticketry.lab.store.files import explain_os_errors, path_exists


def ticket_folder(run: Path, replicate: int, level: int) -> Path:
    """Return the folder of a ticket of a run, which has the folder `run`."""
    return run / "tickets" / f"replicate-{replicate}-level-{level:02d}"


def blob_name(digest: str) -> str:
    """Return the object name of a tensor file with this SHA-256."""
    return f"blobs/{digest[:2]}/{digest}.safetensors"


def results_name(trajectory: str) -> str:
    """Return the common prefix of the object names of a trajectory's results."""
    return f"results/{trajectory[:2]}/{trajectory}/"


def result_name(trajectory: str, step: int) -> str:
    """Return the object name of a trajectory's result at a step."""
    return f"{results_name(trajectory)}{step}.json"


def memo_name(kind: str, key: str) -> str:
    """Return the object name of a stored value, such as the digest of a mask computed with known settings."""
    return f"memo/{kind}/{key[:2]}/{key}.json"


def partial_name(trajectory: str, step: int, digest: str) -> str:
    """Return the object name of a checkpoint inside a segment."""
    return f"partial/{trajectory}-{step}-{digest}.safetensors"


class Paths:
    """The files and folders of a store. Methods raise `OutsideError` for names and links that lead out of it."""

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
        """Names the store that is being moved here, until it has been."""

    def has_folders(self) -> bool:
        """Return whether the folder has subfolders that only stores have; `StoreError` if the system denies the
        answer.
        """
        return any(map(path_exists, (self.results, self.memo, self.runs, self.evidences, self.campaigns)))

    def object_name(self, path: Path) -> str:
        """Return the object name of a file of the store."""
        return path.relative_to(self.root).as_posix()

    # -- single files ------------------------------------------------------------------------------------------------

    def blob(self, digest: str) -> Path:
        return self._inside(blob_name(digest))

    def result(self, trajectory: str, step: int) -> Path:
        return self._inside(result_name(trajectory, step))

    def memo_file(self, kind: str, key: str) -> Path:
        return self._inside(memo_name(kind, key))

    def lock(self, trajectory: str) -> Path:
        """Return the lock file of a trajectory; the process that trains the trajectory holds it."""
        return self._inside(f"{results_name(trajectory)}lock")

    def partial_file(self, trajectory: str, step: int, digest: str) -> Path:
        return self._inside(partial_name(trajectory, step, digest))

    def partial_folder(self, trajectory: str, step: int) -> Path:
        """Return the folder of a sharded checkpoint, see `parts`."""
        return self._inside(f"partial/{trajectory}-{step}.parts")

    def run(self, name: str) -> Path:
        """Return the folder of a run: run.json, run.toml, report.html, figures and tickets."""
        return join_inside(self.root, "runs", name)

    def evidence(self, name: str) -> Path:
        """Return the record of a verification or of a stability analysis."""
        return join_inside(self.root, "evidence", f"{name}.json")

    def campaign(self, name: str) -> Path:
        """Return the record of a campaign at a scale; its pages are in the same folder."""
        return join_inside(self.root, "campaigns", f"{name}.json")

    def record(self, kind: str, name: str) -> Path:
        """Return the record of a ``run``, of ``evidence`` or of a ``campaign``."""
        return self.run(name) / "run.json" if kind == "run" else getattr(self, kind)(name)

    @property
    def costs_folder(self) -> Path:
        """The folder with costs of networks that were measured for searches."""
        return self.root / "costs"

    def costs(self, name: str) -> Path:
        return join_inside(self.root, "costs", f"{name}.json")

    def live_file(self, driver: str, name: str) -> Path:
        """Return the file of a message between a driver and its workers, which is deleted when the driver ends."""
        return join_inside(self.root, "live", driver, name)

    def damaged_place(self, path: Path) -> Path:
        """Return an unused path in ``damaged`` for a file or folder that a repair moves."""
        place = self.root / "damaged" / path.relative_to(self.root)
        number = 1
        with explain_os_errors(place, "look for"):
            while exists(place):
                number += 1
                place = place.with_name(f"{path.name}.{number}")
        return require_inside(self.root, place)

    # -- all files of a kind -----------------------------------------------------------------------------------------
    #
    # A link that leads out of the store is an error, so that nothing outside is read or deleted; so is a folder that
    # cannot be read, since its contents may be needed.

    def run_records(self) -> Iterator[Path]:
        return self._matching(self.runs, "*/run.json")

    def evidence_records(self) -> Iterator[Path]:
        """Yield the records of verifications, stability analyses and timings."""
        return self._matching(self.evidences, "*.json")

    def campaign_records(self) -> Iterator[Path]:
        return self._matching(self.campaigns, "*.json")

    def tickets(self) -> Iterator[Path]:
        """Yield the folder of each ticket that a run has saved."""
        return self._matching(self.runs, "*/tickets/*")

    def pages(self) -> Iterator[Path]:
        """Yield the HTML pages of reports."""
        for folder, pattern in (
            (self.root, "report.html"),
            (self.runs, "*/report.html"),
            (self.evidences, "*.html"),
            (self.campaigns, "*.html"),
        ):
            yield from self._matching(folder, pattern)

    def blob_files(self) -> Iterator[Path]:
        return self._matching(self.blobs, "*/*.safetensors")

    def result_files(self) -> Iterator[Path]:
        return self._matching(self.results, "*/*/*.json")

    def memo_files(self) -> Iterator[Path]:
        return self._matching(self.memo, "*/*/*.json")

    def locks(self) -> Iterator[Path]:
        return self._matching(self.results, "*/*/lock")

    def partial_files(self, trajectory: str = "*") -> Iterator[Path]:
        """Yield the checkpoints inside segments, by default of all trajectories."""
        return self._matching(self.partial, f"{trajectory}-*.safetensors")

    def partial_folders(self, trajectory: str = "*") -> Iterator[Path]:
        """Yield the folders of sharded checkpoints, by default of all trajectories."""
        return self._matching(self.partial, f"{trajectory}-*.parts")

    def live_files(self, name: str) -> Iterator[Path]:
        """Yield the file of the message with this name of each driver."""
        return self._matching(self.live, f"*/{name}")

    def leftovers(self) -> Iterator[Path]:
        """Yield files that killed processes left: temporary files, unfinished tickets, messages to workers."""
        with explain_os_errors(self.root, "read"):
            found = [path for path in iterate_below(self.root) if _is_temporary(path.name)]
        yield from self._checked(found)
        yield from self._matching(self.live, "*/*")

    def _matching(self, folder: Path, pattern: str) -> Iterator[Path]:
        with explain_os_errors(folder, "read"):
            found = list_matching(folder, pattern)
        yield from self._checked(found)

    def _checked(self, paths: list[Path]) -> Iterator[Path]:
        sound = set[Path]()  # each folder is resolved once, not for each of thousands of files in it
        for path in paths:
            if path.parent not in sound:
                sound.add(require_inside(self.root, path.parent))
            yield require_inside(self.root, path) if path.is_symlink() else path

    def _inside(self, name: str) -> Path:
        return join_inside(self.root, *name.split("/"))


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((".tmp", ".old"))
