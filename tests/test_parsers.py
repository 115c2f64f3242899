"""Readers of TOML and JSON refuse odd files quickly, with a short message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.calling import call
from samples import sample
from ticketry.budgets.cost_model import CostModel
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import RunnerError, StoreError, TicketryError
from ticketry.experiments.run_file import read_run_file, read_toml
from ticketry.files import parse_json
from ticketry.lab.runners.worker import Request, parse_answer
from ticketry.lab.store.files import read_json, read_with_digest
from ticketry.lab.store.locks import read_holder
from ticketry.lab.store.store import Store
from ticketry.records.schema import AtLeastOne, NotNegative, Part, decode_record
from ticketry.tasks.data.shards import MANIFEST, Source, open_shards

DIGITS = "9" * 20_000
BASE = 'method = "iterative"\ntask = "digits"\n'
TOML = {
    "a decimal number": f"{BASE}[settings]\nlevels = {DIGITS}",
    "a hexadecimal number": f"{BASE}[settings]\nlevels = 0x{'f' * 20_000}",
    "a number in a list": f"{BASE}[settings]\nflops = [0.5, [1, 0x{'f' * 20_000}]]",
    "just beyond 64 bits": f"{BASE}seed = {2**63}",
    "a key of many parts": f"{'.'.join('a' * 30_000)} = 1\n{BASE}",
    "a table of many parts": f"{BASE}[{'.'.join('a' * 30_000)}]\nb = 1",
    "many quoted parts": BASE + ".".join(['"a.\\"b"'] * 30_000) + " = 1",
    "a key of many parts inside": f"{BASE}a = {{ {'.'.join('a' * 5000)} = 1 }}",
    "nested lists": f"{BASE}a = {'[' * 50_000}{']' * 50_000}",
    "lists nested a little": f"{BASE}a = {'[' * 150}{']' * 150}",
    "nested tables": f"{BASE}a = {'{a=' * 20_000}",
    "a date": f"{BASE}seed = 1979-05-27",
    "a byte that is no text": BASE.encode() + b'model = "\xff"',
    "half of a letter": f'{BASE}model = "\\ud800"',
    "two million bytes": f"{BASE}# {'a' * 2_000_000}",
    "nothing closed": f'{BASE}model = """{"a" * 100_000}',
}


@pytest.mark.parametrize("name", TOML)
def test_odd_run_files_and_campaigns_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, path = TOML[name], tmp_path / "f.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for words in (("search", "--config", str(path)), ("reproduce", str(path))):
        code, out, err = call(capsys, *words, "--store", str(tmp_path / "store"))
        assert code == 2, err[:500]
        assert out == ""
        assert "Traceback" not in err
        assert err.startswith("ticketry: "), err[:500]
        assert str(path) in err
        assert len(err) < 1000
        assert "sys.set_int" not in err, "advice for programmers"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "text",
    [
        f"{BASE}seed = {2**63 - 1}\nmask_seed = {-(2**63)}",
        f'{BASE}model = "{"a." * 500}"',
        f'{BASE}model = """\n{"a word. " * 500}\n"""',
        BASE + ".".join(["a"] * 32) + " = 1",
        f"{BASE}[settings]\nflops = [{', '.join(['0.5'] * 10_000)}]",
    ],
)
def test_large_run_files_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert read_toml(tmp_path / "run.toml", "run file")[1]["method"] == "iterative"


JSON = {
    "a number of 5,000 digits": f'{{"format": {"9" * 5000}}}',
    "a number of 4,000 digits": f'{{"format": {"9" * 4000}, "version": {"9" * 4000}}}',
    "deep lists": "[" * 100_000,
    "lists nested a little": '{"a": ' + "[" * 150 + "]" * 150 + "}",
    "deep objects": '{"a":' * 100_000,
    "no end": '{"a": 1',
    "a list": "[1, 2]",
    "no text": b'{"a": "\xff"}',
    "half of a letter": '{"a": "\\ud800"}',
    "nothing": "",
}
BAD = [
    "a number of 5,000 digits",
    "a number of 4,000 digits",
    "deep lists",
    "deep objects",
    "no end",
]


def _in_a_file(read: Callable[[Path], Any], name: str) -> Callable[[Path, bytes], Any]:
    def attempt(folder: Path, data: bytes) -> Any:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return attempt


def _ticket(folder: Path, data: bytes) -> Any:
    (folder / "ticket.json").write_bytes(data)
    return Ticket.load(folder)


def _store(folder: Path, data: bytes) -> Any:
    (folder / "store.json").write_bytes(data)
    return Store(folder)


def _shards(folder: Path, data: bytes) -> Any:
    (folder / MANIFEST).write_bytes(data)
    return open_shards(Source(folder=str(folder)))


READERS: dict[str, Callable[[Path, bytes], Any]] = {
    "a record": _in_a_file(read_json, "a.json"),
    "a sealed record": _in_a_file(read_with_digest, "a.json"),
    "a store": _store,
    "a ticket": _ticket,
    "costs": _in_a_file(CostModel.load, "costs.json"),
    "a manifest of shards": _shards,
    "a request": lambda folder, data: Request.parse(data.decode()),
    "an answer": lambda folder, data: parse_answer(data.decode()),
}


@pytest.mark.parametrize("reader", READERS)
def test_odd_json_is_refused(tmp_path: Path, reader: str) -> None:
    for name in BAD:
        text = JSON[name]
        with pytest.raises(TicketryError) as caught:
            READERS[reader](tmp_path, text if isinstance(text, bytes) else text.encode())
        assert len(str(caught.value)) < 1000, name
        assert not isinstance(caught.value.__cause__, RecursionError)


@pytest.mark.parametrize("name", JSON)
def test_unreadable_costs_and_leases_are_ignored(tmp_path: Path, name: str) -> None:
    data = text if isinstance(text := JSON[name], bytes) else text.encode()
    (tmp_path / "a.json").write_bytes(data)
    assert read_holder(data) is None


@pytest.mark.parametrize("name", sample(JSON, 4))
def test_commands_on_a_store_with_odd_records(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    store, text = Store(tmp_path / "store"), JSON[name]
    for path in (store.paths.run("a-run") / "run.json", store.paths.evidence("e"), store.paths.result("ab" * 32, 5)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for words in ("list runs --store", "report --store", "store check --store", "store gc --store", "store du --store"):
        code, _, err = call(capsys, *words.split(), str(store.paths.root))
        assert code == 1, (words, err[:300])
        assert "Traceback" not in err
        assert len(err) < 1000


def test_parse_json() -> None:
    value = {"a": [1, -2.5e-3, None, True, "ü"], "b": {"c": 2**64, "d": 10**299}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json("[" * 99 + "1" + "]" * 99) == json.loads("[" * 99 + "1" + "]" * 99)
    assert parse_json(f'"{DIGITS}"') == DIGITS, "digits in a text are no number"
    for odd in ("[" * 101 + "]" * 101, DIGITS, f"-{DIGITS}", f"[0.5, {'1' * 301}]"):
        with pytest.raises(ValueError):
            parse_json(odd)


def test_numbers_in_messages_about_records() -> None:
    class Head(Part, frozen=True):
        count: AtLeastOne
        share: NotNegative = 0.0

    for values in (
        {"count": 10**400},
        {"count": -(10**400)},
        {"count": 1, "share": 10**400},
        {"count": 1, "share": -1},
    ):
        with pytest.raises(StoreError, match="record"):
            decode_record(Head, values, what="record", advice="")


def test_other_odd_files(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="got a request of another program"):
        Request.parse("[" * 100_000)
    with pytest.raises(TicketryError, match="cannot be read: Is a directory"):
        read_run_file(tmp_path)
