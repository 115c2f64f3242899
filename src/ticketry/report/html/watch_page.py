"""The page that renews itself: its script loads a small file beside it again and again, see `report.watching`."""

from __future__ import annotations

from importlib.resources import files

from ticketry.report.html.markup import environment
from ticketry.report.html.page import hashed, style


def render_watch(title: str, source: str) -> str:
    """The whole document, which holds no results.

    Args:
        source: name of the file beside it that tells them.
    """
    own = files("ticketry.report.html")
    script, sheet = (own.joinpath(f"watch.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    # Scripts: this one, and that file. 'self' is nothing where a page is opened from a disk, so that scheme is named.
    allowed = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
        f"script-src {hashed(script)} 'self' file:"
    )
    return (
        environment()
        .get_template("watch.html")
        .render(title=title, source=source, script=script, style=style() + sheet, policy=allowed)
    )
