"""Every option of every command, read from the code: Markdown for the reference."""

from __future__ import annotations

import argparse
import html
import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import tyro

from ticketry.cli import COMMANDS, arguments
from ticketry.search import methods


@dataclass(frozen=True)
class Asked:
    """What a command gives to `cli.arguments.parse`."""

    kind: Any
    prog: str
    description: str
    default: Any = None


class _Seen(BaseException):
    """Carries what a command asked for out of it."""


def asked(command: str, words: Sequence[str] = ("--help",)) -> Asked:
    """What `ticketry COMMAND` takes: the command is run up to where it reads its words."""
    name, _, function = COMMANDS[command][0].partition(":")
    module = importlib.import_module(f"ticketry.cli.{name}")
    search = importlib.import_module("ticketry.cli.search")  # stability reads its words by it
    found: list[Asked] = []

    def seen(kind: Any, _: Sequence[str], *, prog: str, description: str, default: Any = None) -> NoReturn:
        found.append(Asked(kind, prog, description, default))
        raise _Seen

    before = {one: one.parse for one in (module, search) if hasattr(one, "parse")}
    try:
        for one in before:
            one.parse = seen  # type: ignore[attr-defined]
        getattr(module, function or "main")(list(words))
    except _Seen:
        return found[0]
    finally:
        for one, parse in before.items():
            one.parse = parse  # type: ignore[attr-defined]
    raise AssertionError(f"ticketry {command} {' '.join(words)} reads no words")


def parser(of: Asked) -> argparse.ArgumentParser:
    """As argparse has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tyro.extras.get_parser(
            of.kind,
            prog=of.prog,
            description=of.description,
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=arguments.make_registry(),
            **({} if of.default is None else {"default": of.default}),
        )


def pages() -> dict[str, str]:
    """A page for each command, by its name in the reference."""
    return {f"command-{name}": "\n".join(_page(name)) for name in COMMANDS}


def summaries() -> list[tuple[str, str]]:
    """(command, what it does)."""
    return [(name, told) for name, (_, told) in COMMANDS.items()]


def _page(command: str) -> Iterator[str]:
    yield f"# ticketry {command}\n"
    if command == "search":
        yield from _search()
        return
    of = asked(command)
    made = parser(of)
    yield from _described(of.description)
    yield from _table(rows(made))
    for name, own in _subcommands(made):
        yield f"\n## {of.prog} {name}\n"
        yield from _described(own.description or "")
        yield from _table(rows(own))


def _search() -> Iterator[str]:
    """What all methods take, then what each has of its own."""
    of = {name: asked("search", (name, "--help")) for name in methods()}
    told = {name: rows(parser(one)) for name, one in of.items()}
    common = [row for row in told["iterative"] if all(row.key in {one.key for one in each} for each in told.values())]
    shared = {row.key for row in common}
    yield "Find tickets by a published method, with controls, and report what was found: `ticketry search METHOD …`.\n"
    yield "## Of every method\n"
    yield from _table(common)
    for name, one in of.items():
        yield f"\n## {name}\n"
        yield from _described(one.description)
        yield from _table([row for row in told[name] if row.key not in shared])


@dataclass(frozen=True)
class Row:
    """An option."""

    names: tuple[str, ...]
    value: str
    told: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.names

    def __str__(self) -> str:
        names = ", ".join(f"<code>{html.escape(one)}</code>" for one in self.names)
        value = f" <code>{html.escape(self.value)}</code>" if self.value else ""
        told = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(_with_code(self.told)))
        return f"<tr><td>{names}{value}</td><td>{told}</td></tr>"


def rows(of: argparse.ArgumentParser) -> list[Row]:
    """Every option of a parser, but --help."""
    found = []
    for action in of._actions:
        if _is_subcommands(action) or "--help" in action.option_strings:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        told = re.sub(r"\x1b\[[0-9;]*m", "", " ".join((action.help or "").split())).replace("%%", "%")
        names = tuple(action.option_strings) or (metavar or action.dest,)
        found.append(Row(names, metavar if action.option_strings and action.nargs != 0 else "", told))
    return found


def _subcommands(of: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in of._actions:
        if _is_subcommands(action):
            yield from action.choices.items()


def _is_subcommands(action: argparse.Action) -> bool:
    """Whether it holds a parser a sub-command; by its choices, as tyro has classes of its own."""
    return isinstance(action.choices, dict) and all(hasattr(one, "_actions") for one in action.choices.values())


def _described(description: str) -> Iterator[str]:
    text, _, examples = description.partition("\n\nexamples:")
    for part in text.split("\n\n"):
        yield _aligned(part) if part.startswith("  ") else f"{html.escape(_with_code(part), quote=False)}\n"
    if examples:
        found, _, more = examples.strip().partition("\n\n")
        lines = re.split(r"; (?=ticketry)|\n", found)
        yield "```\n" + "\n".join(line.strip() for line in lines if line.strip()) + "\n```\n"
        if more:
            yield f"{html.escape(more, quote=False)}\n"


def _aligned(part: str) -> str:
    """Lines of a word and what it means, as a list; anything else that is indented, as code."""
    lines = [line.strip() for line in part.splitlines()]
    if all(re.match(r"\S+ {2,}\S", line) for line in lines):
        words = (re.split(r" {2,}", line, maxsplit=1) for line in lines)
        return "\n".join(f"- `{word}`: {html.escape(_with_code(told), quote=False)}" for word, told in words) + "\n"
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _with_code(text: str) -> str:
    """Names of options in a text as code, where they are not yet: else a browser breaks them at their hyphens."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"(?<![\w-])--[a-z][\w.-]*\b", r"`\g<0>`", part) for part in parts[::2]]
    return "".join(parts)


def _table(found: Sequence[Row]) -> Iterator[str]:
    if found:
        yield '<div class="options"><table><thead><tr><th>option</th><th>what it is</th></tr></thead><tbody>'
        yield from map(str, found)
        yield "</tbody></table></div>\n"
