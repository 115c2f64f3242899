"""What mkdocs does beside its own: pages made of the code, notebooks as pages, links that lead out of docs/."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]

import commands_reference  # noqa: E402
import notebook_pages  # noqa: E402
import python_reference  # noqa: E402

OUTSIDE = {
    "CONTRIBUTING.md": "about/contributing.md",
    "CHANGELOG.md": "about/changes.md",
    "SECURITY.md": "about/security.md",
    "RELEASING.md": "about/releasing.md",
}
"""Pages that lie beside docs/ and are pages of the site too."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made here into the navigation."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] += [
                {"Commands": [f"reference/{name}.md" for name in commands_reference.pages()]},
                {"Python": [f"reference/{name}.md" for name in python_reference.pages()]},
                {"The project": list(OUTSIDE.values())},
            ]
        if "Tutorials" in entry:
            entry["Tutorials"] += [f"tutorials/{path.stem}.md" for path in notebook_pages.notebooks()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for name, text in _made():
        files.append(File.generated(config, name, content=text))
    return files


def _made() -> Iterator[tuple[str, str]]:
    for name, text in {**commands_reference.pages(), **python_reference.pages()}.items():
        yield f"reference/{name}.md", text
    yield "reference/README.md", _reference()
    for path in notebook_pages.notebooks():
        yield f"tutorials/{path.stem}.md", notebook_pages.page(path)
    for path, name in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        yield name, re.sub(r"\]\((?!#|\w+:)([^)]+)\)", lambda found: f"](../../{found[1]})", text)


def _reference() -> str:
    return "\n".join(
        [
            "# Reference\n",
            "Made of the code, when this site is built.\n",
            "| command | what it does |\n|---|---|",
            *(f"| [`ticketry {name}`](command-{name}.md) | {told} |" for name, told in commands_reference.summaries()),
            "\n| in Python | what it is |\n|---|---|",
            *(f"| [`tk.{name}`]({page}.md) | {told} |" for name, page, told in python_reference.summaries()),
        ]
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Leave away the page of a server: where the site will be is not known, so its links lead nowhere."""
    (Path(config.site_dir) / "404.html").unlink(missing_ok=True)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside of docs/: to their page, or the path alone, since the site has no such file."""
    folder = posixpath.dirname(page.file.src_uri)

    def found(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            inner = path.removeprefix("docs/")
            if inner.endswith(".ipynb"):
                inner = f"{inner.removesuffix('.ipynb')}.md"
            there = files.get_file_from_path(inner)
            if there is not None and not there.inclusion.is_excluded():
                return f"[{text}]({posixpath.relpath(inner, folder or '.')}{anchor})"
            if (ROOT / path).exists():
                return _named(text, path)
            return match[0]
        if path in OUTSIDE:
            return f"[{text}]({posixpath.relpath(OUTSIDE[path], folder or '.')}{anchor})"
        return _named(text, path) if (ROOT / path).exists() else match[0]

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"(?<!!)\[([^\[\]]*)\]\((?!#|\w+:)([^)#\s]+)(#[^)]*)?\)", found, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A browser would break lines within names, after hyphens of options, within intervals, before a ± or a %."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    parts[::2] = [re.sub(r"<code>[^<]{17,}</code>", _with_joints, part) for part in parts[::2]]
    html = re.sub(
        r"<code>((?:[^<]|<wbr>)*--(?:[^<]|<wbr>)*)</code>",
        lambda found: f"<code>{re.sub(r'--[a-z][a-z-]*', _UNBROKEN, found[1])}</code>",
        "".join(parts),
    )
    html = re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", html)
    html = re.sub(r"(?<=\d) %(?=[\s.,;:)<])(?![^<]*</code>)", "\u00a0%", html)
    html = re.sub(r"(\[[-+−]?[\d.]+,) ([-+−]?[\d.]+\])", "\\1\u00a0\\2", html)
    html = _SIGNED.sub(r"\1\2", html)
    return re.sub(r"<td([^>]*)>(.*?)</td>", _cell, html, flags=re.DOTALL)


_SIGNED = re.compile(
    r'(<h2 [^>]*class="doc doc-heading">\s*tk\.(?:\w+\.)*(\w+)\s(?:(?!</h2>).)*</h2>\s*'
    r'<div class="doc-signature highlight"><pre><span></span><code><span class="n\w*">)\w+(?=</span>)',
    re.DOTALL,
)
"""A public name and what stands in its signature: the name that it has where it is written, `get` of `tk.task`."""

_UNBROKEN = r'<span class="option">\g<0></span>'
_LONG = 36
"""Characters from which on a cell of a table is a text, which keeps a width to be read in."""
_SHORT = re.compile(r"[\w.@+-]{1,20}|[\d.,]+( / [\d.,]+){1,2}")
"""A cell that is one name with hyphens, or two or three numbers: it stays in one line."""


def _cell(found: re.Match[str]) -> str:
    """A cell of a table, marked where it is a text, and where it is one name or a few numbers."""
    attributes, text = found.groups()
    plain = re.sub(r"<[^>]+>", "", text)
    if "class=" not in attributes:
        if len(plain) > _LONG and re.search("[a-z]", plain):
            attributes += ' class="text"'
        elif _SHORT.fullmatch(plain):
            attributes += ' class="one"'
    return f"<td{attributes}>{text}</td>"


def _with_joints(code: re.Match[str]) -> str:
    """A name of code that may go on in the next line after each of its joints."""
    return re.sub(r"(?<=\w)(?!\.\d)[_.(\[=,/:|]+(?=[\w\"'])|\)(?=[.,])", r"\g<0><wbr>", code[0])


def _named(text: str, path: str) -> str:
    """A link's words with the path that it led to, or the path alone where the words are its name."""
    return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"
