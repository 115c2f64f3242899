"""Published files: where they are looked for, downloads, and digests of packed and plain content."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import locate
from ticketry.tasks.data.locate import (
    Collection,
    Layout,
    Origin,
    cache_folder,
    fetch,
    find_or_download,
    places,
    read_verified,
)

ONE, TWO = gzip.compress(b"one"), gzip.compress(b"two")
LAYOUT = Layout("Set/raw", ("one", "two"), ("", ".gz"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Start a server on the loopback device; yield its address and the requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = {"/one.gz": ONE, "/two.gz": TWO, "/cut-off": ONE}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write((body or b"")[: 5 if self.path == "/cut-off" else None])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("TICKETRY_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}", asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def collection(url: str) -> Collection:
    origins = (
        Origin(f"{url}/one.gz", "Set/raw/one.gz", hashlib.md5(ONE).hexdigest()),
        Origin(f"{url}/two.gz", "Set/raw/two.gz", hashlib.md5(TWO).hexdigest()),
    )
    return Collection("The set", (LAYOUT,), origins)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "Set" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TICKETRY_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"TICKETRY_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/ticketry"),
        ({"TICKETRY_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/ticketry"),
        ({"TICKETRY_CACHE": "~/c"}, "/home/me/c"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [place.named_by for place in places()] == ["the cache folder"]
    monkeypatch.setenv("TICKETRY_DATA", str(tmp_path / "absent"))
    assert [place.folder for place in places(tmp_path)] == [tmp_path, tmp_path / "absent", cache_folder()]
    with pytest.raises(DataError, match=r"--data .*absent: there is no such folder"):
        places(tmp_path / "absent")


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Path, Path, Path]]:
    asked, variable, cache = tmp_path / "asked", tmp_path / "variable", tmp_path / "cache"
    asked.mkdir()
    monkeypatch.setenv("TICKETRY_DATA", str(variable))
    monkeypatch.setenv("TICKETRY_CACHE", str(cache))
    return lambda: (asked, variable, cache)


def test_the_first_complete_place_is_taken(where: Callable[[], tuple[Path, Path, Path]]) -> None:
    asked, variable, cache = where()
    put(cache, "one.gz", "two.gz")
    assert find_or_download(collection("http://invalid"), places(asked))[0].is_relative_to(cache)
    put(variable, "one", "two.gz")
    assert [path.name for path in find_or_download(collection("http://invalid"), places(asked))] == ["one", "two.gz"]
    put(asked, "one")  # not whole: the next place is looked at
    assert find_or_download(collection("http://invalid"), places(asked))[0].is_relative_to(variable)
    put(asked, "two.gz", "two")
    assert find_or_download(collection("http://invalid"), places(asked)) == (
        asked / "Set/raw/one",
        asked / "Set/raw/two",
    )


def test_missing_files_are_named_with_the_places(
    where: Callable[[], tuple[Path, Path, Path]],
) -> None:
    asked, variable, cache = where()
    with pytest.raises(DataError) as caught:
        find_or_download(collection("http://invalid"), places(asked))
    message = str(caught.value)
    for part in (
        "The set was not found",
        "Set/raw/one, Set/raw/two (plain or .gz)",
        f"{asked}, --data\n",
        f"{variable}, $TICKETRY_DATA (no such folder)",
        f"{cache}, the cache folder (no such folder)",
        "$TICKETRY_OFFLINE is set",
        "name it by --data or $TICKETRY_DATA",
    ):
        assert part in message


def test_absent_files_are_downloaded_once(
    server: tuple[str, list[str]], where: Callable[[], tuple[Path, Path, Path]]
) -> None:
    url, asked_for = server
    asked, _, cache = where()
    put(cache, "one.gz")
    found = find_or_download(collection(url), places(asked))
    assert found == (cache / "Set/raw/one.gz", cache / "Set/raw/two.gz")
    assert found[1].read_bytes() == TWO
    assert asked_for == ["/two.gz"]
    assert find_or_download(collection(url), places(asked)) == found
    assert asked_for == ["/two.gz"]


@pytest.mark.parametrize(("path", "reason"), [("/cut-off", "md5 .* expected, .* found"), ("/nothing", "404")])
def test_a_wrong_download_leaves_nothing_behind(
    server: tuple[str, list[str]], tmp_path: Path, path: str, reason: str
) -> None:
    url, _ = server
    with pytest.raises(DataError, match=reason):
        fetch(Origin(url + path, "folder/file", hashlib.md5(ONE).hexdigest()), tmp_path)
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_refused_connection_and_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TICKETRY_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(DataError, match="could not be downloaded"):
            fetch(Origin(address, "file", ""), tmp_path)
    monkeypatch.setattr(locate, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DataError, match="timed out"):
            fetch(Origin(address, "file", ""), tmp_path)


def test_a_cache_folder_that_cannot_be_written(server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not be downloaded to"):
        fetch(Origin(server[0] + "/one.gz", "one.gz", hashlib.md5(ONE).hexdigest()), tmp_path / "file")


CONTENT = bytes(range(256)) * 50
MD5 = hashlib.md5(CONTENT).hexdigest()
PACKED = {"plain": CONTENT, "file.gz": gzip.compress(CONTENT), "file.xz": lzma.compress(CONTENT)}


@pytest.mark.parametrize("name", PACKED)
def test_content_has_its_digest_however_it_is_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKED[name])
    assert read_verified(path, MD5) == CONTENT
    short = PACKED[name][:-20]
    path.write_bytes(short)
    with pytest.raises(DataError) as caught:
        read_verified(path, MD5)
    for part in (str(path), MD5, hashlib.md5(short).hexdigest(), "Delete it"):
        assert part in str(caught.value)
    for position in (0, 1000 % len(short)):
        changed = bytearray(PACKED[name])
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match=name):
            read_verified(path, MD5)


def test_another_content_is_named_by_its_own_digest(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=f"md5 {MD5} expected, {hashlib.md5(b'other').hexdigest()} found"):
        read_verified(tmp_path / "file.gz", MD5)
    with pytest.raises(DataError, match="cannot be read"):
        read_verified(tmp_path, MD5)
