"""Every file name of a store, in one place."""

from __future__ import annotations

from pathlib import Path


class Paths:
    """Where things are in a store's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "store.json"
        self.blobs = root / "blobs"
        self.results = root / "results"
        self.partial = root / "partial"
        self.memo = root / "memo"
        self.runs = root / "runs"
        self.evidences = root / "evidence"

    def blob(self, digest: str) -> Path:
        """Tensors, named by the SHA-256 of the file."""
        return self.blobs / digest[:2] / f"{digest}.safetensors"

    def trajectory(self, trajectory: str) -> Path:
        """The results along one trajectory, a file for each stored step."""
        return self.results / trajectory[:2] / trajectory

    def result(self, trajectory: str, step: int) -> Path:
        return self.trajectory(trajectory) / f"{step}.json"

    def lock(self, trajectory: str) -> Path:
        return self.trajectory(trajectory) / "lock"

    def partial_pattern(self, trajectory: str) -> str:
        return f"{trajectory}-*.safetensors"

    def partial_file(self, trajectory: str, step: int, digest: str) -> Path:
        """A checkpoint inside a segment; its name carries its step and SHA-256."""
        return self.partial / f"{trajectory}-{step}-{digest}.safetensors"

    def memo_file(self, kind: str, key: str) -> Path:
        """A remembered small answer, such as the digest of a mask made by known settings."""
        return self.memo / kind / key[:2] / f"{key}.json"

    def run(self, name: str) -> Path:
        """The folder of a run: run.json, run.toml, report.html, figures and tickets."""
        return self.runs / name

    def evidence(self, name: str) -> Path:
        """The record of a verification or of a stability analysis."""
        return self.evidences / f"{name}.json"
