"""Pack the results of a store into one file (a bundle), and unpack a bundle into another store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketry.lab.store.packing import Unpacked
from ticketry.lab.store.packing import pack as pack_store
from ticketry.lab.store.packing import unpack as unpack_store
from ticketry.lab.store.paths import local_folder
from ticketry.lab.store.store import open_store
from ticketry.records.campaign import read_campaign_record
from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run


@dataclass(frozen=True)
class Packed:
    """Describes a bundle (a file with results of runs) that `pack` has written.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> packed = tk.store.pack(run.name, "results.tkz")
        >>> packed.runs, sorted(packed.as_json())
        (1, ['bytes', 'masks', 'path', 'results', 'runs', 'weights'])
    """

    path: Path
    """The file."""
    bytes: int
    """Size of the file."""
    runs: int
    """Number of packed runs."""
    results: int
    """Number of packed training results."""
    weights: bool
    """Whether the bundle contains weights."""
    masks: bool = True
    """Whether the bundle contains masks and the results of networks trained with masks."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**vars(self), "path": str(self.path)}


def pack(
    runs: str | Iterable[str] = (),
    path: str | Path = "results.tkz",
    *,
    store: str | Path = ".ticketry",
    weights: bool = False,
    masks: bool = True,
) -> Packed:
    """Write the results of runs (masks, records, metrics) into one file, as ``ticketry store pack`` does.

    Args:
        runs: names of runs; the name of a campaign with its scale (``stabilizing-cpu``) stands for all of its runs; by
            default, everything in the store is packed.
        path: the bundle to write.
        store: folder of the store.
        weights: whether to pack the weights. Without them, a mask takes one bit per weight, and dense weights are
            trained again when a search needs them.
        masks: whether to pack the masks. Without them, the other store still has all verdicts, tables, reports and
            campaigns, but tickets must be trained again. Leaving masks out saves most space for methods
            with dozens of pruning steps (RigL, gradual pruning).

    Raises:
        StoreError: for an unknown run or campaign, weights without masks, or damaged files.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> packed = tk.store.pack(run.name, "results.tkz")
        >>> packed.path.name, packed.runs, packed.weights
        ('results.tkz', 1, False)
    """
    names = (runs,) if isinstance(runs, str) else tuple(runs)
    target = Path(path)
    opened = open_store(store)
    opened.fetch(results=True)
    contents = pack_store(opened, names, target, weights=weights, masks=masks)
    results = sum(part.kind == "result" for part in contents.parts)
    return Packed(target, target.stat().st_size, len(contents.runs), results, weights, masks)


def unpack(path: str | Path, *, store: str | Path = ".ticketry") -> Unpacked:
    """Add the results in a bundle that `pack` wrote to a store, as ``ticketry store unpack`` does.

    The whole bundle is checked before anything is written. Existing files of the store stay unchanged.

    Args:
        path: file of the bundle.
        store: folder of the store, which is created if missing.

    Raises:
        StoreError: if the bundle is damaged, forged, or has another format or another version of the arithmetic.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> added = tk.store.unpack(tk.store.pack(run.name, "results.tkz").path, store="another")
        >>> added.runs == (run.name,)
        True
    """
    return unpack_store(Path(path), local_folder(store), check=_check_record)


def _check_record(kind: str, values: dict[str, Any]) -> None:
    _READ[kind](values, f"the record of the {kind}")


_READ: dict[str, Callable[[object, str], object]] = {
    "run": read_run,
    "evidence": read_evidence,
    "campaign": read_campaign_record,
}
