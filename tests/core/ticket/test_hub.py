"""Tickets on a hub: a server on this machine that answers the few requests the hub's client makes."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import MissingExtraError, TicketError

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

TOKEN = "hf_test"
FILES = {"mask.safetensors", "model.safetensors", "start.safetensors", "ticket.json"}


class StubHub:
    """Repositories as name -> list of commits, a commit being file name -> contents."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.broken: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits for 40 ms

            def do_GET(self) -> None:
                hub.read(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                hub.write(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, handler, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def sha(self, name: str, index: int = -1) -> str:
        commits = self.repositories[name]
        return hashlib.sha1(f"{name} {len(commits) + index if index < 0 else index}".encode()).hexdigest()

    def commit_of(self, name: str, revision: str) -> dict[str, bytes] | None:
        shas = [self.sha(name, index) for index in range(len(self.repositories[name]))]
        revision = shas[-1] if revision == "main" else revision
        return self.repositories[name][shas.index(revision)] if revision in shas else None

    def read(self, handler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append(f"{handler.command} {path}")
        if self.broken:
            return self.answer(handler, self.broken, {"error": "out of order"})
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.repositories:
            return self.answer(handler, 404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        revision = "main" if parts[0] == "api" and len(parts) == 4 else parts[5 if parts[0] == "api" else 3]
        files = self.commit_of(name, revision)
        if files is None:
            return self.answer(handler, 404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        if parts[0] != "api":  # user/name/resolve/revision/file
            data = files["/".join(parts[4:])]
            etag = '"' + hashlib.sha1(data).hexdigest() + '"'
            commit = self.sha(name) if revision == "main" else revision
            return self.answer(handler, 200, data, ETag=etag, X_Repo_Commit=commit)
        if len(parts) > 4 and parts[4] == "tree":
            listing = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return self.answer(handler, 200, listing)
        return self.answer(handler, 200, {"id": name, "sha": self.sha(name), "private": self.private[name]})

    def write(self, handler, body: bytes) -> None:
        path = urlsplit(handler.path).path
        self.requests.append(f"POST {path}")
        if self.broken:
            return self.answer(handler, self.broken, {"error": "out of order"})
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            return self.answer(handler, 401, {"error": message}, X_Error_Message=message)
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, [{".gitattributes": b""}])
            self.private.setdefault(name, asked.get("visibility") == "private")
            return self.answer(handler, 409 if known else 200, {"url": f"{self.url}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(handler, 200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self.answer(handler, 200, {"files": modes})
        assert parts[4:] == ["commit", "main"]
        files = dict(self.repositories[name][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        self.repositories[name].append(files)
        return self.answer(handler, 200, {"commitUrl": f"{self.url}/{name}/commit/x", "commitOid": self.sha(name)})


@pytest.fixture
def hub(monkeypatch) -> Iterator[StubHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    stub = StubHub()
    yield stub
    huggingface_hub.close_session()
    stub.close()


def make(seed: int = 0, trained: bool = True, **info) -> Ticket:
    draw = torch.Generator().manual_seed(seed)
    state = {"w": torch.randn(4, 5, generator=draw), "b": torch.randn(4, generator=draw)}
    mask = Mask({"w": torch.rand(4, 5, generator=draw) < 0.5})
    return Ticket(
        mask, state, {"method": "iterative", "metric": "accuracy", "value": 91.5, **info}, state if trained else None
    )


def same(one: Ticket, other: Ticket) -> bool:
    return (
        (one.mask, one.info) == (other.mask, other.info)
        and all(torch.equal(one.start[name], other.start[name]) for name in one.start)
        and (one.trained is None) == (other.trained is None)
        and all(torch.equal(tensor, other.trained[name]) for name, tensor in (one.trained or {}).items())
    )


def push(ticket: Ticket, hub: StubHub, name: str = "user/ticket", **options) -> str:
    return ticket.push(name, endpoint=hub.url, token=TOKEN, **options)


def pushed(ticket: Ticket, hub: StubHub, folder: Path, **options) -> Path:
    """What the hub has of a ticket then, as the files of a folder, which other libraries' loaders read."""
    push(ticket, hub, **options)
    folder.mkdir()
    for name, data in hub.repositories["user/ticket"][-1].items():
        (folder / name).write_bytes(data)
    return folder


def fetch(hub: StubHub, tmp_path, name: str = "user/ticket", **options) -> Ticket:
    return Ticket.from_hub(name, endpoint=hub.url, token=False, cache_dir=tmp_path / "cache", **options)


def test_what_is_pushed_can_be_fetched(hub, tmp_path):
    ticket = make()
    assert push(ticket, hub, message="A ticket") == f"{hub.url}/user/ticket"
    assert set(hub.repositories["user/ticket"][-1]) == FILES | {"README.md", ".gitattributes"}
    assert same(fetch(hub, tmp_path), ticket)
    assert len(hub.repositories["user/ticket"]) == 2  # one commit on top of the first


def test_the_cache_is_used(hub, tmp_path):
    push(make(), hub)
    fetch(hub, tmp_path)
    hub.requests.clear()
    assert same(fetch(hub, tmp_path), make())
    assert not any(request.startswith("GET /user") for request in hub.requests)


def test_only_a_tickets_files_are_fetched(hub, tmp_path):
    push(make(), hub)
    hub.repositories["user/ticket"][-1] |= {"huge.bin": b"x", "sub/ticket.json": b"{}", "run.py": b"", "model.pkl": b""}
    fetch(hub, tmp_path)
    fetched = {request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET /user")}
    assert fetched == FILES | {"README.md"}


def test_revisions(hub, tmp_path):
    push(make(0), hub)
    first = hub.sha("user/ticket")
    push(make(1), hub)
    assert same(fetch(hub, tmp_path), make(1))
    assert same(fetch(hub, tmp_path, revision=first), make(0))
    with pytest.raises(TicketError, match="'user/ticket' cannot be fetched: there is no such revision"):
        fetch(hub, tmp_path, revision="v9")


def test_an_untrained_ticket_leaves_no_trained_weights_behind(hub, tmp_path):
    push(make(0), hub)
    push(make(0, trained=False), hub)
    assert "model.safetensors" not in hub.repositories["user/ticket"][-1]
    assert fetch(hub, tmp_path).trained is None


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_is_private_if_asked_for(hub, private):
    push(make(), hub, private=private)
    assert hub.private["user/ticket"] == private


def test_weights_of_something_else_are_not_overwritten(hub):
    hub.repositories["user/ticket"] = [{"model.safetensors": b"precious", "README.md": b"mine"}]
    with pytest.raises(TicketError, match="holds weights that are not a ticket's"):
        push(make(), hub)
    assert len(hub.repositories["user/ticket"]) == 1


def test_the_model_card(hub):
    push(make(settings={"rewind": "3%|<b>\n"}, license="apache-2.0"), hub)
    card = hub.repositories["user/ticket"][-1]["README.md"].decode()
    head = huggingface_hub.ModelCard(card).data.to_dict()
    assert head == {
        "library_name": "ticketry",
        "tags": ["pytorch", "lottery-ticket", "pruning", "sparsity"],
        "license": "apache-2.0",
    }
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    mask = make().mask
    assert f"| density | {mask.density:.4g} ({mask.kept} of 20 prunable weights kept) |" in rows
    assert "| metric | accuracy 91.5 |" in rows
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert "<b>" not in card
    code = card.split("```python\n")[1].split("```")[0]
    assert 'tk.Ticket.from_hub("user/ticket")' in code
    assert len([line for line in code.splitlines() if line]) == 3
    push(make(), hub)
    assert "license" not in hub.repositories["user/ticket"][-1]["README.md"].decode()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_tampered_file_is_refused(hub, tmp_path, name):
    push(make(), hub)
    files = hub.repositories["user/ticket"][-1]
    files[name] = files[name][:-4] + b"evil"
    with pytest.raises(TicketError):
        fetch(hub, tmp_path)


def test_a_repository_without_a_ticket(hub, tmp_path):
    hub.repositories["user/ticket"] = [{"config.json": b"{}"}]
    hub.private["user/ticket"] = False
    with pytest.raises(TicketError):
        fetch(hub, tmp_path)


def test_an_absent_repository(hub, tmp_path):
    with pytest.raises(
        TicketError, match="'user/none' cannot be fetched: there is no such repository, or it is private"
    ):
        fetch(hub, tmp_path, "user/none")


def test_a_token_that_does_not_allow_it(hub):
    with pytest.raises(TicketError, match=r"cannot be pushed to 'user/ticket': the token does not allow it: log in"):
        make().push("user/ticket", endpoint=hub.url, token="hf_other")
    assert hub.repositories == {}


def test_a_hub_that_is_out_of_order(hub):
    hub.broken = 400
    with pytest.raises(TicketError, match="cannot be pushed to 'user/ticket': the hub answered 400"):
        push(make(), hub)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "user/..", "-x-/y", "user name/x"])
def test_names_that_are_none(hub, tmp_path, name):
    with pytest.raises(TicketError, match="a repository is called user/name"):
        fetch(hub, tmp_path, name)
    with pytest.raises(TicketError, match="a repository is called user/name"):
        push(make(), hub, name)
    assert hub.requests == []


def test_no_network(hub, tmp_path):
    hub.close()
    with pytest.raises(TicketError, match="cannot be fetched: the hub cannot be reached: check the network"):
        fetch(hub, tmp_path)
    with pytest.raises(TicketError, match="cannot be pushed to 'user/ticket': the hub cannot be reached"):
        push(make(), hub)


def test_offline(hub, tmp_path, monkeypatch):
    push(make(), hub)
    fetch(hub, tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert same(fetch(hub, tmp_path), make())  # from the cache
    with pytest.raises(TicketError, match=r"the hub cannot be reached: .*HF_HUB_OFFLINE"):
        fetch(hub, tmp_path, "user/other")
    with pytest.raises(TicketError, match=r"the hub cannot be reached: .*HF_HUB_OFFLINE"):
        push(make(), hub)
    assert hub.requests == []


def test_a_cached_folder_is_not_a_tickets_folder_by_itself(hub, tmp_path):
    """Its files are links to the cache's blobs; `load` follows no links to outside, `from_hub` knows the cache."""
    push(make(), hub)
    fetch(hub, tmp_path)
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    with pytest.raises(TicketError, match="is a link to outside"):
        Ticket.load(snapshot)


def test_without_the_hubs_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ticketry\[hub\]'"):
        Ticket.from_hub("user/ticket")
    with pytest.raises(MissingExtraError, match=r"pip install 'ticketry\[hub\]'"):
        make().push("user/ticket")


def test_the_card_tells_the_verdict_and_shows_the_figure(hub, tmp_path):
    push(make(), hub, verdict="It wins | <b>really</b>\nby 0.2", figure=b"\x89PNG figure")
    files = hub.repositories["user/ticket"][-1]
    card = files["README.md"].decode()
    assert files["figure.png"] == b"\x89PNG figure"
    assert "## Does it win?\n\nIt wins \\| &lt;b>really&lt;/b>?by 0.2\n" in card
    assert "![The metric by the share of weights kept](figure.png)" in card
    assert same(fetch(hub, tmp_path), make())
    push(make(), hub)
    assert "Does it win" not in hub.repositories["user/ticket"][-1]["README.md"].decode()


def ticket_of(model: torch.nn.Module) -> Ticket:
    """Trained as far as its weights are others than those it starts from."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return Ticket(prune(model, density=0.3), state, {"method": "oneshot"}, model.state_dict())


def test_transformers_opens_a_ticket_by_itself(hub, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ticket = ticket_of(model)
    folder = pushed(ticket, hub, tmp_path / "there", model=model)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.arange(12).reshape(2, 6)
    assert type(opened) is type(model)
    assert torch.equal(opened(ids).logits, ticket.apply(model, "trained")(ids).logits)
    assert all((opened.state_dict()[name][~kept] == 0).all() for name, kept in ticket.mask.items())


def test_timm_opens_a_ticket_by_itself(hub, tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    ticket = ticket_of(model)
    folder = pushed(ticket, hub, tmp_path / "there", model=model)
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(opened(images), ticket.apply(model, "trained")(images))


def test_a_model_that_no_other_loader_knows(hub):
    layer = torch.nn.Linear(5, 4)
    with pytest.raises(TicketError, match="Linear is no model of transformers or timm"):
        push(ticket_of(layer), hub, model=layer)
    with pytest.raises(TicketError, match="does not fit"):
        push(make(), hub, model=layer)
    with pytest.raises(TicketError, match="has not been trained"):
        push(make(trained=False), hub, model=layer)
    assert hub.repositories == {}
