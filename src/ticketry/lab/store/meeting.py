"""Where a store and a bundle have a file of one name: which of the two stays, and whether anything is lost by that."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ticketry.errors import StoreError
from ticketry.lab.remote.records import moved_inside
from ticketry.lab.store.bundle_file import Kind
from ticketry.lab.store.files import unsealed
from ticketry.records.campaign import CampaignRecord, read_campaign_record


class Met(NamedTuple):
    """What was found of two files that are not the same."""

    taken: bool
    """Whether the bundle's takes the place of the store's."""
    lost: Literal["", "numbers", "replicates"] = ""
    """What only the other one tells: other numbers, or replicates of a campaign."""


_OF_MAKING = ("seconds", "train_seconds", "other_seconds", "cost", "environment", "command", "config", "store")
"""What records tell of how and when they were made, beside what was found."""


def met(kind: Kind, name: tuple[str, ...], known: bytes, new: bytes) -> Met:
    """What to do with two files: that of the store and that of a bundle, which was checked."""
    if known == new:
        return Met(taken=False)
    if kind == "blob" or (kind == "memo" and name[0] == "left-out"):
        return Met(taken=False)  # one content; and any training that gives some weights is as good as another
    ours, theirs = _values(known), unsealed(new, "the bundle's")
    if ours is None:
        return Met(taken=False, lost="numbers")
    if kind == "campaign":
        try:
            return _of_campaigns(read_campaign_record(ours), read_campaign_record(theirs))
        except StoreError:
            return Met(taken=False, lost="numbers")
    if kind == "result" and None in (mine := ours.pop("metrics"), other := theirs.pop("metrics")):
        same = _found(ours) == _found(theirs)
        return Met(same and mine is None and other is not None, "" if same else "numbers")
    if kind == "result":
        ours, theirs = {**ours, "metrics": mine}, {**theirs, "metrics": other}
    return Met(taken=False, lost="" if _found(ours) == _found(_placed(theirs, ours)) else "numbers")


def _values(data: bytes) -> dict[str, Any] | None:
    try:
        return unsealed(data, "the store's")
    except StoreError:
        return None


def _placed(values: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """A record with paths as in another's store: one that was moved or copied tells of its tickets in another place."""
    old, new = values.get("store"), beside.get("store")
    if not (isinstance(old, str) and isinstance(new, str) and old):
        return values
    moved: dict[str, Any] = moved_inside(values, old, new)
    return moved


def _found(value: Any) -> Any:
    """A record without what it tells of its making."""
    if isinstance(value, dict):
        return {name: _found(one) for name, one in value.items() if name not in _OF_MAKING}
    return [_found(one) for one in value] if isinstance(value, list) else value


def _of_campaigns(ours: CampaignRecord, theirs: CampaignRecord) -> Met:
    """The one with more replicates stays, of equals the later one."""
    taken = _rank(theirs) > _rank(ours)
    kept, other = (theirs, ours) if taken else (ours, theirs)
    have = {run.name: run.replicates for run in kept.runs}
    lost = any(run.replicates > have.get(run.name, 0) for run in other.runs)
    return Met(taken, "replicates" if lost else "")


def _rank(record: CampaignRecord) -> tuple[int, int, str]:
    replicates = sum(run.replicates for run in record.runs)
    return replicates, len(record.twins), str(record.environment.get("date", ""))
