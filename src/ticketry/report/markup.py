"""HTML from nested calls: whatever is not HTML already is escaped, so nothing in a record can become markup."""

from __future__ import annotations

import html
import re

from ticketry.report.wording import clean


class Html(str):
    """Text that is HTML already. Only `el`, `join` and the page's own constants make it."""

    __slots__ = ()


def el(name: str, *children: str | None, **attributes: str | int) -> Html:
    """An element: ``el("td", "1 < 2", class_="number")`` is ``<td class="number">1 &lt; 2</td>``.

    Children that are None are left out; an attribute's trailing underscore is dropped, others become hyphens.
    """
    inside = "".join(escape(child) for child in children if child is not None)
    return Html(f"<{name}{''.join(_attribute(*item) for item in attributes.items())}>{inside}</{name}>")


def join(*parts: str | None) -> Html:
    """The parts one after the other, each escaped unless it is HTML; None is left out."""
    return Html("".join(escape(part) for part in parts if part is not None))


def prose(text: str) -> Html:
    """A sentence in which a number is never torn from its sign or unit at the end of a line."""
    together = re.sub(r"(?<=\d) (?=[±%×])|(?<=[±×]) (?=\d)|(?<=n) (?==)|(?<==) (?=\d)", "\N{NO-BREAK SPACE}", text)
    return escape(together)


def escape(text: str) -> Html:
    """The text as HTML; what is HTML already stays."""
    return text if isinstance(text, Html) else Html(html.escape(clean(text)))


def _attribute(name: str, value: str | int) -> str:
    return f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
