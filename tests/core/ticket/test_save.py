from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from ticketry.core.mask import Mask
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError

NAMES = ["mask.safetensors", "model.safetensors", "start.safetensors", "ticket.json"]


def make(seed: int = 0, trained: bool = True) -> Ticket:
    draw = torch.Generator().manual_seed(seed)
    state = {"w": torch.randn(4, 5, generator=draw), "b": torch.randn(4, generator=draw)}
    mask = Mask({"w": torch.rand(4, 5, generator=draw) < 0.5})
    return Ticket(mask, state, {"method": "iterative", "seeds": {"init": seed}}, state if trained else None)


@pytest.fixture
def folder(tmp_path) -> Path:
    return make().save(tmp_path / "ticket")


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_a_ticket_is_four_files(tmp_path):
    path = make().save(str(tmp_path / "above" / "ticket"))
    assert path == tmp_path / "above" / "ticket"
    assert sorted(contents(path)) == NAMES
    assert [entry.name for entry in path.parent.iterdir()] == ["ticket"]


def test_the_same_ticket_is_left_alone(folder):
    before = {entry.name: entry.stat().st_ino for entry in folder.iterdir()}
    (folder / "notes.txt").write_text("mine")
    make().save(folder)
    after = {entry.name: entry.stat().st_ino for entry in folder.iterdir()}
    assert after.pop("notes.txt")
    assert after == before


@pytest.mark.parametrize("trained", [True, False])
def test_another_ticket_is_replaced(folder, trained):
    make(1, trained).save(folder)
    assert Ticket.load(folder).info == {"method": "iterative", "seeds": {"init": 1}}
    assert (Ticket.load(folder).trained is not None) == trained
    assert [entry.name for entry in folder.parent.iterdir()] == ["ticket"]


def test_a_damaged_ticket_is_replaced(folder):
    (folder / "start.safetensors").write_bytes(b"gone")
    make().save(folder)
    assert Ticket.load(folder).info["seeds"] == {"init": 0}


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "ticket").mkdir()
    assert Ticket.load(make().save(tmp_path / "ticket")).density == make().density


def test_a_folder_with_other_files_is_refused(folder):
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(TicketError, match=r"not a ticket's folder \(it holds 'notes.txt'\)"):
        make(1).save(folder)
    assert contents(folder) == before


def test_a_folder_that_is_no_ticket_is_refused(tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"precious")
    for ticket_json in (None, b"{}", b"[]", b"\xff", b'{"kind": "other"}'):
        if ticket_json is not None:
            (target / "ticket.json").write_bytes(ticket_json)
        before = contents(target)
        with pytest.raises(TicketError, match="is there and is not a ticket's folder"):
            make().save(target)
        assert contents(target) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "ticket").write_text("mine")
    with pytest.raises(TicketError, match="is a file: a ticket is a folder"):
        make().save(tmp_path / "ticket")
    with pytest.raises(TicketError, match=r"cannot be written to .*choose another folder"):
        make().save(tmp_path / "ticket" / "below")
    assert (tmp_path / "ticket").read_text() == "mine"


def test_no_room(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TicketError, match=r"cannot be written to .*: No space left on device; make room, check"):
        make().save(tmp_path / "ticket")
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_refused():
    with pytest.raises(TicketError, match="needs a folder of its own"):
        make().save("/")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(TicketError, match=r"Permission denied.*check the permissions"):
        make().save(tmp_path / "ticket")
    tmp_path.chmod(stat.S_IRWXU)


def test_a_link_to_a_ticket_is_followed(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    make(1).save(link)
    assert link.is_symlink()
    assert Ticket.load(folder).info["seeds"] == {"init": 1}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (Path, "rename"), (Path, "mkdir")])
def test_whatever_call_fails_the_folder_is_whole_and_nothing_is_left_behind(tmp_path, monkeypatch, there, module, name):
    """Let the n-th call, and from then on every one, fail as on a full disk, for all n."""
    if there:
        make(0).save(tmp_path / "ticket")
    for attempt in range(20):
        left = [attempt]
        real = getattr(module, name)

        def failing(*args, real=real, left=left, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            saved = False
            with contextlib.suppress(TicketError):
                make(attempt + 1).save(tmp_path / "ticket")
                saved = True
        if saved:
            break
        if (tmp_path / "ticket").exists():
            assert Ticket.load(tmp_path / "ticket").info["seeds"]["init"] in (0, attempt + 1)
        else:
            assert not there or name == "rename"
        if name != "rename":  # where nothing can be renamed, nothing can be put back
            assert {entry.name for entry in tmp_path.iterdir()} <= {"ticket"}
    assert Ticket.load(tmp_path / "ticket").info["seeds"]["init"] == attempt + 1
    assert attempt > 0


def test_one_failing_rename_is_tried_again(folder, monkeypatch):
    real, calls = Path.rename, []

    def flaky(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(39, "Directory not empty")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", flaky)
    make(1).save(folder)
    assert Ticket.load(folder).info["seeds"] == {"init": 1}
    assert [entry.name for entry in folder.parent.iterdir()] == ["ticket"]


def test_several_writers_of_one_ticket(folder):
    errors = []

    def write() -> None:
        try:
            make(1).save(folder)
        except TicketError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Ticket.load(folder).info["seeds"] == {"init": 1}
    assert [entry.name for entry in folder.parent.iterdir()] == ["ticket"]
