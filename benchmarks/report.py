"""How long a report of a thousand and of a hundred thousand networks takes to open in a browser, and how large it is.

Made-up runs, one a rewind point, each of 14 levels with two controls and so many replicates: five runs with 1,075 and
with 100,190 networks, and 94 runs with 101,050. Headless Chromium, from the address to the load event with everything
drawn (two animation frames later), a new browser context each time. Of the large ones also how long the networks of a
run take to be unpacked. Needs playwright and a Chromium (--browser, by default /usr/bin/chromium).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Row, main, parser, seconds_row

from ticketry.report import write_report

CASES = ((5, 5, 2.0, 5.0), (5, 466, 4.0, 12.0), (94, 25, 4.0, 12.0))
"""Runs, replicates, and what is to be reached: seconds and megabytes."""
LEVELS, QUICK_LEVELS = 14, 2
ROLES = ("ticket", "random_reinit", "shuffled")
OPENS, QUICK_OPENS = 9, 1


def measure(arguments: argparse.Namespace) -> list[Row]:
    cases = CASES[:1] if arguments.quick else CASES
    return [row for case in cases for row in measured(arguments, *case)]


def measured(
    arguments: argparse.Namespace, runs: int, replicates: int, most_seconds: float, most_megabytes: float
) -> list[Row]:
    """The rows of one report."""
    from playwright.sync_api import sync_playwright

    levels = QUICK_LEVELS if arguments.quick else LEVELS
    records = [run(number, levels, replicates) for number in range(runs)]
    networks = sum(len(record["points"]) for record in records)
    unpacks: list[float] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        began = time.process_time()
        page = write_report(records, Path(folder) / "report.html")
        wrote = time.process_time() - began
        browser = playwright.chromium.launch(
            executable_path=arguments.browser, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        seconds = [opened(browser, page, unpacks) for _ in range(1 + (QUICK_OPENS if arguments.quick else OPENS))][1:]
        browser.close()
        size = page.stat().st_size / 1e6
    what = f"report of {networks:,} networks in {runs} runs"
    how = f"{len(seconds)} times, wall time, headless Chromium"
    rows = [
        seconds_row(f"{what}: opens", seconds, target=most_seconds, how=how),
        Row(f"{what}: size", size, "MB", target=most_megabytes),
        Row(f"{what}: is written", wrote, "s", how="once, processor time"),
    ]
    return rows + ([seconds_row(f"{what}: a run's networks unpacked", unpacks[1:], how=how)] if unpacks else [])


def opened(browser: Any, page: Path, unpacks: list[float]) -> float:
    """Seconds until the page is loaded and drawn; those that a run's networks take, if they are packed, are added."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    began = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="load")
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - began
    if tab.query_selector("details.packed.rows"):
        began = time.perf_counter()
        tab.click("details.packed.rows > summary")
        tab.wait_for_selector("details.packed.rows tbody tr")
        unpacks.append(time.perf_counter() - began)
    context.close()
    return seconds


def run(number: int, levels: int, replicates: int) -> dict[str, Any]:
    """The record of a run, its numbers drawn at random."""
    draw = random.Random(number)
    points = [point(draw, replicate, 0, "dense") for replicate in range(replicates)]
    points += [
        point(draw, replicate, level, role)
        for replicate in range(replicates)
        for level in range(1, levels + 1)
        for role in ROLES
    ]
    return {
        "format": 1,
        "kind": "search",
        "run": f"iterative-made-up-{number}",
        "method": "iterative",
        "title": "Iterative magnitude pruning with rewinding",
        "task": {
            "name": "made-up",
            "model": "lenet-300-100",
            "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
            "parameters": 266_610,
            "prunable": 266_200,
        },
        "settings": {"rewind": f"{number}%", "rate": 0.2, "levels": levels, "retrain": "continue"},
        "recipe": {"length": "10ep"},
        "replicates": replicates,
        "steps": {"total": 4300, "per_epoch": 430, "rewind": 43 * number},
        "cost": {"segments_asked": len(points), "segments_trained": len(points)},
        "environment": {"date": "2026-01-01T00:00:00Z"},
        "points": points,
    }


def point(draw: random.Random, replicate: int, level: int, role: str) -> dict[str, Any]:
    value = 90 - 0.1 * level * (role != "ticket") + draw.gauss(0, 0.3)
    density = 0.8**level
    layers = [("fc1.weight", 235_200), ("fc2.weight", 30_000), ("fc3.weight", 1_000)]
    return {
        "replicate": replicate,
        "level": level,
        "role": role,
        "density": density,
        "kept": round(266_200 * density),
        "validation": {"accuracy": value, "loss": 0.3},
        "test": {"accuracy": value - 0.3, "loss": 0.3},
        "steps": 4300,
        "budget": 4300,
        "seconds": 9.0,
        "key": f"{draw.getrandbits(256):064x}@4300",
        **(
            {"layers": [{"name": name, "kept": round(total * density), "total": total} for name, total in layers]}
            if role == "ticket"
            else {}
        ),
    }


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--browser", default="/usr/bin/chromium", help="a Chromium's executable")
    return made


if __name__ == "__main__":
    main("report", measure, options())
