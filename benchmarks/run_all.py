"""Runs every benchmark, writes results/<date>-<processor>.json beside this file and prints one Markdown table.

    python benchmarks/run_all.py --data DATA [--store STORE --config RUN.toml] [--quick]

--store and --config go to second_run.py. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import HERE, machine_line, short_processor, table

BENCHMARKS = (
    "masking",
    "domains",
    "domains_language",
    "domains_reinforcement",
    "continuous",
    "early",
    "members",
    "many_tickets",
    "epoch",
    "search_overhead",
    "second_run",
    "mask_size",
    "imports",
    "verdict",
    "engine",
    "loader",
    "report",
    "structure",
)


def main() -> int:
    arguments = options().parse_args()
    records, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or BENCHMARKS:
            output = Path(folder) / f"{name}.json"
            print(f"{name} …", file=sys.stderr, flush=True)
            command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(output), *passed_on(name, arguments)]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
                failed.append(name)
            else:
                records.append(json.loads(output.read_text(encoding="utf-8")))
    if records:
        whole = {**records[0]["machine"], "load_after": records[-1]["machine"]["load_after"]}
        print(f"\n{machine_line(whole)}\n")
        print(table([row for record in records for row in record["rows"]]))
        print(f"\n{write(records, arguments.quick)}", file=sys.stderr)
    for name in failed:
        print(f"{name} failed", file=sys.stderr)
    return 1 if failed else 0


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="few repeats: shows that it works, measures nothing")
    made.add_argument("--data", type=Path, help="folder of data sets (or set $TICKETRY_DATA)")
    made.add_argument("--store", type=Path, help="a store with a finished search, for second_run.py")
    made.add_argument("--config", type=Path, help="that search's run.toml")
    made.add_argument("--only", nargs="*", choices=BENCHMARKS, help="some of them")
    return made


def passed_on(name: str, arguments: argparse.Namespace) -> list[str]:
    words = ["--quick"] if arguments.quick else []
    given = {"--data": arguments.data}
    if name == "second_run":
        given |= {"--store": arguments.store, "--config": arguments.config}
    for flag, value in given.items():
        words += [flag, str(value)] if value else []
    return words


def write(records: list[dict[str, Any]], quick: bool) -> Path:
    """All records as one file, named by the day and the processor; quick ones, which measure nothing, apart."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    name = f"{date}-{short_processor(records[0]['machine']['processor'])}{'-quick' if quick else ''}.json"
    path = HERE / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"date": date, "benchmarks": records}, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
