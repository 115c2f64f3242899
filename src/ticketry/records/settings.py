"""Convert settings of a search from older formats of run files, campaigns, records and tickets."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

FORMAT_1_DEFAULTS: dict[str, Any] = {
    "structured": False,
    "multiple": 1,
    "pattern": "unstructured",
    "plus": 0.0,
    "refill_match": False,
    "rows": 16,
    "regroup_method": "similarity",
    "regroup_collapse": "raise",
    "refill_score": "l1",
    "refill_coupled": "agree",
}
"""Setting of format 1 -> its default; the setting `structure` has replaced all of these."""
FORMAT_1 = frozenset((*FORMAT_1_DEFAULTS, "budget"))
"""Names of settings of format 1 that no built-in method has any more."""
_OPTIONS = {
    "refill": {"refill_score": "score", "refill_coupled": "coupled"},
    "refill+": {"refill_score": "score", "refill_coupled": "coupled"},
    "regroup": {"regroup_method": "method", "regroup_collapse": "collapse"},
}


def upgrade_settings(stored: Mapping[str, Any], known: Container[str] = ()) -> dict[str, Any]:
    """Return stored settings of a search, converted to the present names and values.

    - Format 1 had `structured`, `multiple`, `pattern` and options such as `rows`. They become one setting `structure`;
      those with default values are dropped.
    - Format 1 had the name `budget` for `equal_cost`.
    - Settings with `time` (a share of latency) but without `base` get the base ``engine``: the share then refers to the
      dense network compiled by ticketry's engine.

    All other settings are returned unchanged, even if they are wrong.

    Args:
        known: names of the method's own settings; a setting of format 1 with one of these names is not converted.
    """
    settings = dict(stored)
    if settings.get("time") and "base" not in settings:
        settings["base"] = "engine"
    if "budget" in settings and "budget" not in known:
        settings["equal_cost"] = settings.pop("budget")
    old = {name: value for name, value in settings.items() if name in FORMAT_1_DEFAULTS and name not in known}
    if not old:
        return settings
    changed = {name: value for name, value in old.items() if value != FORMAT_1_DEFAULTS[name]}
    structure, used = settings.get("structure", "none"), set[str]()
    texts = []
    if changed.get("structured") is True:
        texts.append("channels" + (f":{changed['multiple']}" if "multiple" in changed else ""))
        used |= {"structured", "multiple"}
    if "pattern" in changed:
        pattern = str(changed["pattern"])
        groups = f"rows:{pattern.removesuffix('x1')}" if pattern.endswith("x1") else f"search:{pattern}"
        texts.append("filters" if pattern == "channel" else groups)
        used.add("pattern")
    if structure != "none":
        options = _OPTIONS.get(structure, {})
        number = ""
        if structure == "regroup" and "rows" in changed:
            number = f":{changed['rows']}"
        elif structure == "refill+" and "refill_match" in changed:
            number = ":match"
        elif structure == "refill+" and "plus" in changed:
            number = f":{changed['plus']:g}"
        texts.append(
            f"{structure}{number}" + "".join(f",{options[one]}={changed[one]}" for one in options if one in changed)
        )
        used |= {*options} | ({"rows"} if structure == "regroup" else {"plus", "refill_match"} if number else set())
    if texts:
        settings["structure"] = " and ".join(texts)
    return {name: value for name, value in settings.items() if name not in old or name in changed.keys() - used}


def pattern_of_structure(structure: str) -> str:
    """Return the mask pattern (see `core.structure.pattern`) that a structure stands for; empty if it has none."""
    if structure == "filters":
        return "channel"
    if rows := re.fullmatch(r"rows:(\d+)", structure):
        return f"{rows[1]}x1"
    ratio = re.fullmatch(r"(?:search:)?(\d+:\d+)", structure)
    return ratio[1] if ratio else ""
