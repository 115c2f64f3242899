from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ticketry.core.mask import Mask, to_bytes
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


def rewrite(folder: Path, change) -> None:
    """Change ticket.json together with its digest, as a forger would."""
    manifest = json.loads((folder / "ticket.json").read_text())
    del manifest["sha256"]
    changed = change(manifest)
    changed = manifest if changed is None else changed
    text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    seal = {"sha256": hashlib.sha256(text.encode()).hexdigest()} if isinstance(changed, dict) else {}
    (folder / "ticket.json").write_text(json.dumps({**changed, **seal} if seal else changed))


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file together with its facts in ticket.json, as a forger would."""
    (folder / name).write_bytes(data)
    fact = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(folder, lambda manifest: manifest["files"].update({name: fact}))


def refused(folder: Path, match: str | None = None) -> None:
    with pytest.raises(TicketError, match=match) as caught:
        Ticket.load(folder)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


class TestDamage:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        refused(folder, f"not a whole ticket: it has no file {name}")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("keep", [0, 9, -1])
    def test_a_truncated_file(self, folder, name, keep):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) - 2] if keep == -1 else data[:keep])
        refused(folder)

    @pytest.mark.parametrize("name", NAMES[:3])
    def test_a_flipped_bit(self, folder, name):
        data = bytearray((folder / name).read_bytes())
        for position in (3, len(data) - 1):
            data[position] ^= 4
            (folder / name).write_bytes(data)
            refused(folder, f"{name} is damaged: its SHA-256")

    def test_flipped_bits_of_its_manifest(self, folder):
        """Each is either harmless (in white space) or refused."""
        file = folder / "ticket.json"
        written, info = file.read_bytes(), Ticket.load(folder).info
        for position in range(0, len(written), 4):
            flipped = bytearray(written)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            try:
                ticket = Ticket.load(folder)
                assert ticket.info == info
                assert not ticket.is_as_written(folder)
            except TicketError:
                continue

    def test_format_1_has_no_digest_of_its_manifest(self, folder):
        manifest = json.loads((folder / "ticket.json").read_text())
        del manifest["sha256"]
        (folder / "ticket.json").write_text(json.dumps({**manifest, "format": 1}))
        assert Ticket.load(folder).info == make().info
        (folder / "ticket.json").write_text(json.dumps(manifest))
        refused(folder, "its contents do not match its digest")

    def test_trained_weights_that_are_not_listed(self, folder):
        rewrite(folder, lambda manifest: manifest["files"].pop("model.safetensors") and None)
        refused(folder, r"has a model\.safetensors that its ticket\.json does not list")

    def test_no_folder(self, tmp_path):
        refused(tmp_path / "none", "there is no ticket at")
        (tmp_path / "file").write_text("")
        refused(tmp_path / "file", "there is no ticket at")
        (tmp_path / "empty").mkdir()
        refused(tmp_path / "empty", r"no file ticket\.json")


class TestManifest:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"{",
            b"\xff\xfe{}",
            '{"kind": "ticketry.ticket"}'.encode("utf-16"),
            b'{"kind": NaN}',
            b'{"kind": "ticketry.ticket", "format": 1, "info": {"a": 1e999}}',
            b'{"kind": "ticketry.ticket", "format": 1, "info": {"a": Infinity}}',
            b'{"kind": "ticketry.ticket", "format": ' + b"9" * 5000 + b"}",
            b'{"kind": "\\ud800"}',
            b'{"\\ud800": 1}',
            b'{"kind": "ticketry.ticket\x1b[2J"}',
            b"[" * 100_000,
            b'{"a":' * 200 + b"1" + b"}" * 200,
            b'{"info": ' + b"[" * 50 + b"]" * 50 + b"}",
        ],
        ids=lambda data: str(data[:40]),
    )
    def test_invalid_manifests_are_refused(self, folder, data):
        (folder / "ticket.json").write_bytes(data)
        refused(folder)

    def test_a_huge_manifest_is_not_read(self, folder):
        with (folder / "ticket.json").open("r+b") as file:
            file.truncate(1 << 40)  # a hole: reading it would take a terabyte
        refused(folder, "larger than 16 MB")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_random_changes_are_refused_or_harmless(self, folder, data):
        good = json.dumps(json.loads((folder / "ticket.json").read_text())).encode()
        changed = bytearray(good)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        other = folder.parent / "other"
        shutil.copytree(folder, other, dirs_exist_ok=True)
        (other / "ticket.json").write_bytes(changed)
        try:
            ticket = Ticket.load(other)
        except TicketError:
            return
        assert ticket.mask == make().mask

    @pytest.mark.parametrize(
        ("key", "values", "said"),
        [
            ("kind", [None, "ticketry.mask", 1, {}], "is not a ticket's: its kind is"),
            ("format", [3, 10**9], "made by a newer ticketry .*pip install -U ticketry"),
            ("format", [None, 0, -1, "1", 1.0, True, [1]], "no format number"),
            ("info", [None, [], "text", 3], "has no info"),
            ("files", [None, [], "x", {}, {"mask.safetensors": {"size": 1, "sha256": "0" * 64}}], "does not list"),
            ("density", [0.1], "its density is not that of the mask"),
            ("sparsity", [None], "its sparsity is not that of the mask"),
            ("counts", [{}, {"kept": 1, "prunable": 20, "parameters": None, "state": 24}], "its counts is not that"),
            ("layers", [[]], "its layers is not that of the mask"),
        ],
    )
    def test_invalid_values_are_refused(self, folder, key, values, said):
        for value in values:
            rewrite(folder, lambda manifest, value=value: manifest.update({key: value}))
            refused(folder, said)

    def test_invalid_facts_of_a_file_are_refused(self, folder):
        digest = "0" * 64
        sizes = [{"size": size, "sha256": digest} for size in (-1, True, 1.0, "1")]
        digests = [{"size": 1, "sha256": other} for other in (0, "0" * 63, digest + "\n", "G" * 64)]
        for entry in (None, 3, {}, {"size": 3}, *sizes, *digests):
            rewrite(folder, lambda manifest, entry=entry: manifest["files"].update({"start.safetensors": entry}))
            refused(folder, r"has no size and SHA-256 of start\.safetensors")

    @pytest.mark.parametrize("size", [0, 1, 1 << 62, 10**299])
    def test_a_claimed_size_takes_no_memory(self, folder, size):
        rewrite(folder, lambda manifest: manifest["files"]["start.safetensors"].update(size=size))
        refused(folder, r"start\.safetensors has \d+ bytes and not the number in")

    def test_unknown_values_are_ignored(self, folder):
        rewrite(folder, lambda manifest: manifest.update(added={"later": [1]}))
        assert Ticket.load(folder).mask == make().mask


class TestEscape:
    @pytest.fixture
    def opened(self, monkeypatch) -> list[str]:
        """Collect every path that the test reads."""
        seen: list[str] = []
        real = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda self: seen.append(os.path.realpath(self)) or real(self))
        return seen

    @pytest.mark.parametrize(
        "name",
        ["../../x", "../outside.safetensors", "/etc/passwd", "./start.safetensors", "a/b", "..", "", "ticket.json",
         "start.safetensors\x00", "README.md", "C:\\x", "start.safetensors/../../outside.safetensors"],
    )  # fmt: skip
    def test_file_names_are_from_a_fixed_set(self, folder, opened, name):
        outside = folder.parent / "outside.safetensors"
        outside.write_bytes(b"secret")
        fact = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
        rewrite(folder, lambda manifest: manifest["files"].update({name: fact}))
        opened.clear()
        refused(folder, "names the file .*, which is none of a ticket's")
        assert opened == [str(folder / "ticket.json")]

    @pytest.mark.parametrize("name", NAMES)
    def test_links_to_outside_are_not_followed(self, folder, opened, name):
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        opened.clear()
        refused(folder, "is a link to outside of the ticket and is not followed")
        assert str(outside) not in opened

    @pytest.mark.parametrize("target", ["/etc/passwd", "../none", "mask.safetensors/x", "start.safetensors", "."])
    def test_links_of_other_kinds(self, folder, target):
        (folder / "start.safetensors").unlink()
        (folder / "start.safetensors").symlink_to(target)
        refused(folder)

    def test_links_inside_are_followed(self, folder):
        (folder / "start.safetensors").rename(folder / "blob")
        (folder / "start.safetensors").symlink_to("blob")
        assert Ticket.load(folder).mask == make().mask

    def test_a_link_to_the_folder_is_followed(self, folder):
        (folder.parent / "link").symlink_to(folder)
        assert Ticket.load(folder.parent / "link").mask == make().mask

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    @pytest.mark.parametrize("name", NAMES)
    def test_a_pipe_is_not_waited_for(self, folder, name):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, "it has no file")

    def test_a_folder_in_place_of_a_file(self, folder):
        (folder / "start.safetensors").unlink()
        (folder / "start.safetensors").mkdir()
        refused(folder, r"it has no file start\.safetensors")


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


class TestForgedTensors:
    """Files with valid digests and invalid contents."""

    @pytest.mark.parametrize("name", NAMES[:3])
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\x80\x04\x95", id="pickle"),
            pytest.param(b"PK\x03\x04" + b"\0" * 40, id="zip"),
            pytest.param(b"\xff" * 64, id="header-of-2^64"),
            pytest.param((1 << 40).to_bytes(8, "little") + b"{}", id="header-of-2^40"),
            pytest.param(raw(b"{"), id="no-json"),
            pytest.param(raw(b'{"a":' + b"[" * 100_000), id="nested"),
            pytest.param(raw({}), id="no-tensors"),
            pytest.param(raw({"w": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]}}), id="claims"),
            pytest.param(raw({"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}), id="overflow"),
            pytest.param(raw({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x"), id="odd-dtype"),
            pytest.param(
                raw({"w": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}), id="strides"
            ),
            pytest.param(
                raw({"w": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, b"abcd"), id="dimensions"
            ),
            pytest.param(raw({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"abcd"), id="offsets"),
            pytest.param(save({"x": torch.ones(3)}), id="other-tensor"),
            pytest.param(save({"w": torch.ones(5, 4), "b": torch.ones(4)}), id="other-shape"),
            pytest.param(save({"w": torch.ones(4, 5), "module.w": torch.ones(4, 5)}), id="one-name-twice"),
        ],
    )
    def test_are_refused(self, folder, name, data):
        put(folder, name, data)
        refused(folder)

    def test_a_mask_of_another_network(self, folder):
        put(folder, "mask.safetensors", to_bytes(Mask({"v": torch.ones(4, 5)})))
        refused(folder, "the mask names 'v', which start does not have")

    def test_a_mask_with_other_bits(self, folder):
        put(folder, "mask.safetensors", to_bytes(Mask({"w": torch.ones(4, 5)})))
        refused(folder, "its density is not that of the mask")

    def test_trained_weights_that_are_not_masked_are_masked(self, folder):
        put(folder, "model.safetensors", save({"w": torch.ones(4, 5), "b": torch.ones(4)}))
        ticket = Ticket.load(folder)
        assert torch.equal(ticket.trained["w"] != 0, ticket.mask["w"])

    def test_weights_that_are_not_numbers_are_allowed(self, folder):
        nothing = {"w": torch.full((4, 5), float("nan")), "b": torch.full((4,), float("inf"))}
        put(folder, "start.safetensors", save(nothing))
        assert Ticket.load(folder).start["w"].isnan().all()

    def test_no_pickle_is_ever_loaded(self, folder, monkeypatch):
        def never(*args, **kwargs):
            raise AssertionError("a pickle was loaded")

        import pickle

        for module, name in [(pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")]:
            monkeypatch.setattr(module, name, never)
        Ticket.load(folder)


# -- saving ------------------------------------------------------------------------------------------------------------


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
