"""Every file name of a store, in one place. What may come from the content of a file is kept inside the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ticketry.files import join_inside, require_inside
from ticketry.folders import exists, iterate_below, list_matching
from ticketry.lab.store.files import explained, is_there


def ticket_folder(run: Path, replicate: int, level: int) -> Path:
    """Where a run, which has this folder, keeps a ticket."""
    return run / "tickets" / f"replicate-{replicate}-level-{level:02d}"


class Paths:
    """Where things are in a store's folder. Methods raise `OutsideError` for names and links that lead out of it."""

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
        """Which store is being moved to here, as long as it is."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """What only a store has, of which one is enough to know one by."""
        return self.results, self.memo, self.runs, self.evidences, self.campaigns

    def has_folders(self) -> bool:
        """Return whether one of these is there; `StoreError` if the system does not tell."""
        return any(map(is_there, self.folders))

    def blob(self, digest: str) -> Path:
        """Tensors, named by the SHA-256 of the file."""
        return self._inside("blobs", digest[:2], f"{digest}.safetensors")

    def trajectory(self, trajectory: str) -> Path:
        """The results along one trajectory, a file for each stored step."""
        return self._inside("results", trajectory[:2], trajectory)

    def result(self, trajectory: str, step: int) -> Path:
        return self._inside("results", trajectory[:2], trajectory, f"{step}.json")

    def lock(self, trajectory: str) -> Path:
        return self._inside("results", trajectory[:2], trajectory, "lock")

    def locks(self) -> Iterator[Path]:
        """The lock of each trajectory that was ever trained here; who trains one holds its."""
        return self._there(self.results, "*/*/lock")

    def partial_pattern(self, trajectory: str) -> str:
        return f"{trajectory}-*.safetensors"

    def partial_file(self, trajectory: str, step: int, digest: str) -> Path:
        """A checkpoint inside a segment; its name carries its step and SHA-256."""
        return self._inside("partial", f"{trajectory}-{step}-{digest}.safetensors")

    def partial_folder(self, trajectory: str, step: int) -> Path:
        """A checkpoint inside a segment of which several processes have written their parts."""
        return self._inside("partial", f"{trajectory}-{step}.parts")

    def memo_file(self, kind: str, key: str) -> Path:
        """A remembered small answer, such as the digest of a mask made by known settings."""
        return self._inside("memo", kind, key[:2], f"{key}.json")

    def live_file(self, driver: str, name: str) -> Path:
        """What a driver and the workers that train for it tell each other; gone when the driver ends."""
        return self._inside("live", driver, name)

    def live_files(self, name: str) -> Iterator[Path]:
        """The file of this name of each driver."""
        return self._there(self.live, f"*/{name}")

    def run(self, name: str) -> Path:
        """The folder of a run: run.json, run.toml, report.html, figures and tickets."""
        return self._inside("runs", name)

    def evidence(self, name: str) -> Path:
        """The record of a verification or of a stability analysis."""
        return self._inside("evidence", f"{name}.json")

    @property
    def costs_folder(self) -> Path:
        """What networks cost, as searches measured it before they began."""
        return self.root / "costs"

    def costs(self, name: str) -> Path:
        return self._inside("costs", f"{name}.json")

    def campaign(self, name: str) -> Path:
        """The record of a campaign at a scale; its pages lie beside it."""
        return self._inside("campaigns", f"{name}.json")

    # What is there: a link that leads out of the store is an error, so that nothing beyond it is read or deleted. So is
    # a folder that cannot be read: what it holds may be needed.

    def run_records(self) -> Iterator[Path]:
        """The record of each run that has one."""
        return self._there(self.runs, "*/run.json")

    def tickets(self) -> Iterator[Path]:
        """The folder of each ticket that a run has saved."""
        return self._there(self.runs, "*/tickets/*")

    def pages(self) -> Iterator[Path]:
        """The pages of reports."""
        for folder, pattern in (
            (self.root, "report.html"),
            (self.runs, "*/report.html"),
            (self.evidences, "*.html"),
            (self.campaigns, "*.html"),
        ):
            yield from self._there(folder, pattern)

    def evidence_records(self) -> Iterator[Path]:
        """The records of verifications, studies of stability and timings."""
        return self._there(self.evidences, "*.json")

    def record(self, kind: str, name: str) -> Path:
        """The record of a ``run``, of ``evidence`` or of a ``campaign``."""
        return self.run(name) / "run.json" if kind == "run" else getattr(self, kind)(name)

    def campaign_records(self) -> Iterator[Path]:
        """The records of campaigns."""
        return self._there(self.campaigns, "*.json")

    def blob_files(self) -> Iterator[Path]:
        """All stored tensors."""
        return self._there(self.blobs, "*/*.safetensors")

    def result_files(self) -> Iterator[Path]:
        """All results."""
        return self._there(self.results, "*/*/*.json")

    def memo_files(self) -> Iterator[Path]:
        """All remembered small answers."""
        return self._there(self.memo, "*/*/*.json")

    def partial_files(self, pattern: str = "*.safetensors") -> Iterator[Path]:
        """All checkpoints inside a segment, or those of `partial_pattern`."""
        return self._there(self.partial, pattern)

    def partial_folders(self, trajectory: str = "*") -> Iterator[Path]:
        """All checkpoints in parts, or those of a trajectory."""
        return self._there(self.partial, f"{trajectory}-*.parts")

    def leftovers(self) -> Iterator[Path]:
        """Temporary files of writers that were killed, folders of tickets that were being saved or replaced, and what
        drivers that were killed told their workers."""
        with explained(self.root, "read"):
            found = [path for path in iterate_below(self.root) if _is_temporary(path.name)]
        yield from self._checked(found)
        yield from self._there(self.live, "*/*")

    def aside(self, path: Path) -> Path:
        """Where a repair moves a file or folder of the store: what was moved there before stays."""
        place = self.root / "damaged" / path.relative_to(self.root)
        number = 1
        with explained(place, "look for"):
            while exists(place):
                number += 1
                place = place.with_name(f"{path.name}.{number}")
        return require_inside(self.root, place)

    def _there(self, folder: Path, pattern: str) -> Iterator[Path]:
        with explained(folder, "read"):
            found = list_matching(folder, pattern)
        yield from self._checked(found)

    def _checked(self, paths: list[Path]) -> Iterator[Path]:
        sound = set[Path]()  # links of a folder are followed once, not once for each of thousands of files in it
        for path in paths:
            if path.parent not in sound:
                sound.add(require_inside(self.root, path.parent))
            yield require_inside(self.root, path) if path.is_symlink() else path

    def _inside(self, *names: str) -> Path:
        return join_inside(self.root, *names)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((".tmp", ".old"))
