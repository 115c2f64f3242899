"""Screenshots of every page at 400 and 1,400 px, light and dark: `python docs/site/look.py FOLDER [PAGE …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SITE = Path(__file__).resolve().parent.parent.parent / "build" / "site"


def main(folder: Path, names: list[str]) -> None:
    """Take them, and tell of pages that are wider than the window, or say something in the console."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [
        path for path in sorted(SITE.rglob("*.html")) if not names or path.stem in names or path.parent.name in names
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width in (400, 1400):
            for scheme in ("light", "dark") if names else ("light",):
                page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
                page.on("console", lambda one: print("console:", one.text) if one.type == "error" else None)
                for path in pages:
                    page.goto(path.as_uri(), wait_until="load")
                    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                    if wide > 0:
                        print(f"{path.relative_to(SITE)}: {wide} px too wide at {width}")
                    if names:
                        page.screenshot(
                            path=folder / f"{path.parent.name}-{path.stem}-{width}-{scheme}.png", full_page=True
                        )
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
