"""The verification that would decide a level which the replicates of a run leave undecided, as a command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ticketry.errors import TrustError
from ticketry.evidence.judging.planned_verification import seeds_of_verification
from ticketry.experiments.options import LabOptions
from ticketry.experiments.run_file import check_trust, read_run_file
from ticketry.records.run import RunRecord
from ticketry.records.verdict import LevelVerdict

_PASSED_ON = ("data", "workers", "on", "precision", "devices", "parallel", "norms")
"""Options of the search's own command line that a verification takes too, beside those that its record names."""


@dataclass(frozen=True)
class NextVerification:
    """What would decide a level."""

    level: LevelVerdict
    seeds: int | None
    """Seeds that a verification is likely to need; None if there are too many to ask for."""
    command: str
    """The command line, empty where `seeds` is None."""


def next_verification(record: RunRecord, run_file: Path) -> NextVerification | None:
    """Choose the undecided level that is most worth verifying; None if every level is decided.

    This is the sparsest level whose mean is within the margin of dense, or the one whose mean is nearest to dense.

    Args:
        record: with verdicts by the current rule.
        run_file: of the run, which names what has to be trusted.
    """
    undecided = [one for one in record.verdicts if not one.decided]
    if not undecided:
        return None
    close = [one for one in undecided if one.difference >= -one.margin]
    level = min(close, key=lambda one: one.density) if close else max(undecided, key=lambda one: one.difference)
    seeds = seeds_of_verification(level)
    return NextVerification(level, seeds, _command(record, level, seeds, run_file) if seeds else "")


def next_lines(record: RunRecord, run_file: Path) -> list[str]:
    """Return the verification that would decide an undecided level in words, with its command; empty if none is."""
    found = next_verification(record, run_file)
    if found is None:
        return []
    count = sum(not one.decided for one in record.verdicts)
    at = f"level {found.level.level} ({100 * found.level.density:.3g} % of the weights)"
    first = f"undecided at {count} of {len(record.verdicts)} levels"
    if found.seeds is None:
        return [f"decide   {first}; at {at} no number of seeds up to 1,000 is likely to decide"]
    return [
        f"decide   {first}; about {found.seeds} fresh seeds are likely to decide {at}:",
        f"         {found.command}",
    ]


def _command(record: RunRecord, level: LevelVerdict, seeds: int, run_file: Path) -> str:
    from ticketry.evidence.judging.interim_analyses import INTERIM

    words = ["ticketry", "verify", record.name, "--density", f"{level.density:.4g}", "--about", "procedure"]
    if level.claim == "matches":
        words += ["--claim", "matches", "--controls", "none"]
    if seeds > INTERIM[-1]:
        words += ["--interim", f"{-(-seeds // 2)},{seeds}"]
    if record.store and record.store != str(LabOptions.store):
        words += ["--store", record.store]
    words += lab_words(record)
    return shlex.join([*words, *(["--trust"] if needs_trust(run_file, record.store) else [])])


def lab_words(record: RunRecord) -> list[str]:
    """Return the options of a command that trains a run's networks again in the same way, without the store."""
    told = record.environment
    usual = {"device": ("cpu", None), "kernels": ("dense", None), "threads": (1, None)}
    found = {name: told.get("threads_per_segment" if name == "threads" else name) for name in usual}
    words = [word for name, value in found.items() if value not in usual[name] for word in (f"--{name}", str(value))]
    try:
        said = shlex.split(record.command)
    except ValueError:  # not a command line: written by hand
        said = []
    for name in _PASSED_ON:
        flag = f"--{name}"
        for index, word in enumerate(said):
            if word == flag and index + 1 < len(said):
                words += [flag, said[index + 1]]
            elif word.startswith(f"{flag}="):
                words.append(word)
    return words


def needs_trust(run_file: Path, store: str) -> bool:
    """Whether a command that repeats the run has to be told ``--trust``: the run names more than what is built in."""
    try:
        check_trust(read_run_file(run_file), (), of=str(run_file), store=store)
    except TrustError:
        return True
    return False
