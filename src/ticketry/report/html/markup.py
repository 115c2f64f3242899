"""From blocks to HTML: every text is cleaned and escaped here, so nothing in a record can become markup."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ticketry.report.html.blocks import Block
from ticketry.report.wording import clean


@cache
def environment() -> Environment:
    """The templates of the page."""
    made = Environment(
        loader=PackageLoader("ticketry.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["prose"] = prose
    return made


def html(block: Block | None) -> str:
    """One block as an element; nothing for None."""
    blocks: Any = environment().get_template("blocks.html").module
    return str(blocks.blocks([block]))


def prose(text: str) -> str:
    """A sentence in which a number is never torn from its sign or unit at the end of a line."""
    return re.sub(r"(?<=\d) (?=[±%×])|(?<=[±×]) (?=\d)|(?<=n) (?==)|(?<==) (?=\d)", "\N{NO-BREAK SPACE}", text)


def _cleaned(item: Any) -> Any:
    return clean(item) if isinstance(item, str) and not isinstance(item, Markup) else item
