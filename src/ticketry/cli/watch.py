"""ticketry report --watch: a page that renews itself while a store's searches run."""

from __future__ import annotations

import time
from pathlib import Path

from ticketry.errors import StoreError


def watch(store: Path, page: Path | None) -> int:
    """Write the page, and what it shows every two seconds, until Ctrl-C or SIGTERM; 0.

    Raises:
        StoreError: if it cannot be written.
    """
    from ticketry.lab.store import open_store
    from ticketry.lab.store.files import read_sealed
    from ticketry.records.progress import EVERY, FILE
    from ticketry.report.html.watch_page import render_watch
    from ticketry.report.watching import Watch, write_look

    paths = open_store(store).paths  # of a shared store: of its mirror, for what this machine does
    page = page or paths.root / "watch.html"
    told = page.with_suffix(".js")
    looking = Watch(lambda: paths.live.glob(f"*/{FILE}"), paths.run_records, paths.campaign_records, read_sealed)
    try:
        write_look(told, looking.look())
        page.write_text(render_watch(f"Searches in {paths.root.resolve().name}", told.name), encoding="utf-8")
        print(f"watch  {page}\nrenewed every {EVERY:g} s until Ctrl-C; open it in a browser", flush=True)
        while True:
            time.sleep(EVERY)
            write_look(told, looking.look())
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        raise StoreError(f"cannot write {page}: {error.strerror}; choose another place with --output") from error
