"""Shards of images: written, described, read from a folder and a URL, split and ordered like a folder of images."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import http.server
import io
import itertools
import json
import pickle
import shutil
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

import azurite
import buckets
from ticketry.errors import DataError, TaskError, TicketryError
from ticketry.lab.training.data_loading import batches, build_data_order, part_of_batch
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.ranks.batch_parts import Draws
from ticketry.lab.training.supervised import course_of
from ticketry.tasks import catalogue
from ticketry.tasks.data.shards import describe, write_shards
from ticketry.tasks.images import ShardClassification
from ticketry.tasks.task import PartOfBatch

COUNTS = {"cat": 12, "ant": 25, "bee": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with the pixels (class, number, 0)."""
    root = tmp_path_factory.mktemp("images") / "set"
    for part, counts in (("train", COUNTS), ("val", {"cat": 3, "ant": 2})):
        for name, count in counts.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.zeros((10, 8 + index % 3, 3), np.uint8)
                pixels[:, :] = sorted(COUNTS).index(name), index + (100 if part == "val" else 0), 0
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root


@pytest.fixture
def root(images: Path, tmp_path: Path) -> Path:
    """Shards of about eight images each."""
    return write_shards(images, tmp_path / "shards", megabytes=0.0006)


def task(path: object, model: str = "lenet-300-100", **options: object) -> ShardClassification:
    texts = {name: str(value) for name, value in options.items()}
    given = {"path": str(path), "size": "8", "resize": "8", "workers": "0", **texts}
    found = catalogue.get("imageshards", model=model, options=given)
    assert isinstance(found, ShardClassification)
    return found


def content(found: ShardClassification) -> list[list[tuple[int, int]]]:
    """Return class and number of each image of each split, in order."""
    parts = []
    for part in vars(found.load()).values():
        read = part.reader.request(part.inputs)()
        assert read[:, 0, 0, 0].tolist() == part.targets.tolist()
        parts.append([tuple(pixel) for pixel in read[:, :2, 0, 0].tolist()])
    return parts


def test_shards_hold_each_image_once(root: Path, images: Path) -> None:
    assert len(list(root.glob("train-*.tar"))) > 3
    train, validation, test = content(task(root, validation="0.2"))
    expected = [(sorted(COUNTS).index(name), index) for name, count in COUNTS.items() for index in range(count)]
    assert sorted(train + validation) == sorted(expected)
    assert [sum(label == number for label, _ in validation) for number in range(3)] == [5, 1, 2]
    assert sorted(test) == [(0, 100), (0, 101), (2, 100), (2, 101), (2, 102)]


def test_shards_are_in_webdataset_format_and_deterministic(root: Path, images: Path, tmp_path: Path) -> None:
    again = write_shards(images, tmp_path / "again", megabytes=0.0006)
    for path in root.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with tarfile.open(root / "train-000000.tar") as archive:
        names = archive.getnames()
        assert names[:2] == ["00000000.png", "00000000.cls"]
        for picture, label in zip(names[::2], names[1::2], strict=True):
            file, number = archive.extractfile(picture), archive.extractfile(label)
            assert file is not None
            assert number is not None
            assert Image.open(io.BytesIO(file.read())).getpixel((0, 0))[0] == int(number.read())
    with pytest.raises(DataError, match="has something in it"):
        write_shards(images, root)


def test_shards_without_a_manifest_are_the_same_task(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(root, bare, ignore=shutil.ignore_patterns("shards.json", "index.npz"))
    assert content(task(bare)) == content(task(root))
    assert task(bare).key() == task(root).key()
    assert "bare" not in json.dumps(task(bare).key())


def test_the_key_depends_on_content_and_order(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    (other / "train-000000.tar").unlink()
    describe(other)
    tasks = [task(root), task(other), task(root, window=2), task(root, size=4), task(root, validation="0.2")]
    assert len({json.dumps(each.key(), sort_keys=True) for each in tasks}) == len(tasks)
    assert task(root, workers=2).key() == task(root).key()


# -- the order ---------------------------------------------------------------------------------------------------------


def slow_order(shards: list[int], window: int, permutation: list[int], places: list[int]) -> list[int]:
    """Fill one window of shards after the other."""
    found = []
    for first in range(0, len(places), window):
        mixed = [shard for shard, place in enumerate(places) if first <= place < first + window]
        found += [example for example in permutation if shards[example] in mixed]
    return found


@pytest.mark.parametrize("window", [1, 2, 100])
def test_an_epoch_is_a_permutation_that_mixes_a_window_of_shards(root: Path, window: int) -> None:
    from ticketry_engine.support.seeds import generator

    train = task(root, window=window).load().train
    assert train.reader is not None
    numbers = train.reader.shards(train.inputs).tolist()  # type: ignore[attr-defined]
    shards = [sorted(set(numbers)).index(number) for number in numbers]
    per_epoch, orders = -(-len(train) // 4), []
    for epoch in range(2):
        order = build_data_order(train, 7, 4)
        found = torch.cat([order.batch(step) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]).tolist()
        permutation = torch.randperm(len(train), generator=generator(7, "order", epoch)).tolist()
        places = torch.randperm(len(set(shards)), generator=generator(7, "shards", epoch)).tolist()
        assert found == slow_order(shards, window, permutation, places)
        orders.append(found)
    assert orders[0] != orders[1]
    if window == 1:  # each shard is finished before the next one
        visited = [shards[example] for example in orders[0]]
        assert sum(one != other for one, other in itertools.pairwise(visited)) == len(set(shards)) - 1


def test_batches_depend_on_the_step_alone_and_ranks_share_them(root: Path) -> None:
    train = task(root, window=2).load().train
    whole = build_data_order(train, 3, 8)
    batches = [whole.batch(step).tolist() for step in range(20)]
    for step in (19, 5, 0):
        assert build_data_order(train, 3, 8).batch(step).tolist() == batches[step]
    for world in (2, 3):
        for step in range(20):
            parts = [part_of_batch(whole.batch(step), rank, world) for rank in range(world)]
            assert torch.cat(parts).tolist() == batches[step]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="rank 2 of 2"):
        part_of_batch(whole.batch(0), 2, 2)


def test_crops_are_those_of_a_folder(root: Path, images: Path) -> None:
    """By requests that were pickled, as for another process."""
    shards, files = (
        task(root).load().test,
        catalogue.get("imagefolder", model="lenet-300-100", options={"path": str(images), "size": "8"}).load().test,
    )
    assert shards.reader is not None
    assert files.reader is not None
    placed = {tuple(pixel): row for row, pixel in enumerate(files.reader.request(files.inputs)()[:, :2, 0, 0].tolist())}
    own = [tuple(pixel) for pixel in shards.reader.request(shards.inputs)()[:, :2, 0, 0].tolist()]
    request = pickle.loads(pickle.dumps(shards.reader.request(shards.inputs, ("resized_crop",), 5)))
    rows = torch.tensor([placed[pixel] for pixel in own])
    assert torch.equal(request(), files.reader.request(rows, ("resized_crop",), 5)())


@dataclass
class Simulated:
    """A rank without the other processes."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def drawing(self, place: PartOfBatch) -> Draws:
        return Draws(place)


@pytest.mark.parametrize(("of", "world"), [("shards", 2), ("files", 3)])
def test_ranks_get_the_crops_and_flips_of_the_whole_batch(root: Path, images: Path, of: str, world: int) -> None:
    options = {"path": str(images), "size": "8", "workers": "0"}
    files = catalogue.get("imagefolder", model="lenet-300-100", options=options)
    found = task(root, window=2) if of == "shards" else files
    recipe = found.recipe.changed(batch=8, augment=("resized_crop", "flip"))
    course = course_of(found)
    sessions = [course, *(course.cut(Simulated(rank, world)) for rank in range(world))]
    whole, *parts = ([*each.session(recipe, 3, Arithmetic()).batches(range(2))] for each in sessions)
    for step, (inputs, targets) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)


def test_an_epoch_is_read_with_a_few_batches_in_memory(tmp_path: Path) -> None:
    """3.7 MB of images; reading an epoch never holds a tenth of it."""
    draw = np.random.Generator(np.random.PCG64(0))
    for part, count in (("train", 100), ("val", 1)):
        for name in ("a", "b", "c"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    root = write_shards(tmp_path / "set", tmp_path / "shards", megabytes=0.4)
    train = task(root).load().train
    order = build_data_order(train, 0, 4)
    with contextlib.closing(batches(train, order.batch, range(-(-len(train) // 4)), "cpu")) as found:
        next(found)
        tracemalloc.start()
        count = sum(len(targets) for _, targets in found)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == len(train) - 4
    assert peak < 0.35e6


# -- from a URL --------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        requested.append(self.path)


requested: list[str] = []


@pytest.fixture
def url(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TICKETRY_OFFLINE", raising=False)
    requested.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_shards_at_a_url_are_fetched_once_and_late(url: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task(url)
    assert requested == []
    assert found.key() == task(root).key()
    assert not [path for path in requested if path.endswith(".tar")]
    assert content(found) == content(task(root))
    tars = [path for path in requested if path.endswith(".tar")]
    assert sorted(tars) == sorted(f"/{path.name}" for path in root.glob("*.tar"))
    requested.clear()
    assert content(task(url)) == content(task(root))
    assert requested == ["/shards.json"]
    monkeypatch.setenv("TICKETRY_OFFLINE", "1")
    assert content(task(url)) == content(task(root))


def test_concurrent_readers_fetch_a_shard_once(url: str) -> None:
    test = task(url).load().test
    assert test.reader is not None
    request = test.reader.request(test.inputs)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: request(), range(4))
    assert all(torch.equal(first, other) for other in others)
    tars = [path for path in requested if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) > 0


def test_fetched_shards_have_the_digest_of_the_manifest(url: str, root: Path) -> None:
    found = task(url)
    found.load()
    shard = next(root.glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"is not the shard of the manifest: SHA-256 \w{64} expected"):
        content(found)
    shard.unlink()
    with pytest.raises(DataError, match=f"there is no {url}/{shard.name}"):
        content(found)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://host/x", "no shards are read from ftp://"),
        ("s3://key:secret@bucket/x", "holds a password"),
        ("https://host/x?signature=secret", "holds a password or a signature"),
    ],
)
def test_wrong_addresses(address: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason) as error:
        task(address)
    assert "secret" not in str(error.value)


# -- errors -----------------------------------------------------------------------------------------------------------


def tar(path: Path, **members: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a_jpg": b"x"}, r"the image a has no class: a member a\.cls"),
        ({"a_jpg": b"x", "a_cls": b"cat"}, r"a\.cls is no class"),
        ({"a_txt": b"x"}, "has no shards"),
        ({"a_jpg": b"x", "a_cls": b"0"}, "no shards for test"),
    ],
)
def test_wrong_shards(members: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", **members)
    with pytest.raises(DataError, match=reason):
        task(tmp_path).load()


def test_other_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        task(tmp_path / "nowhere").load()
    (tmp_path / "train-0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="cannot be read as a shard"):
        task(tmp_path).load()
    (tmp_path / "train-0.tar").rename(tmp_path / "0.tar")
    with pytest.raises(DataError, match="for training or for testing"):
        task(tmp_path).load()
    with pytest.raises(TaskError, match=r"needs to know where they are: --option path=DIR"):
        catalogue.get("imageshards").key()


def test_a_truncated_shard_is_named(root: Path) -> None:
    shard = next(root.glob("train-*.tar"))
    found = task(root)
    found.load()
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"where its manifest says"):
        content(found)


@pytest.mark.parametrize("change", ["outside", "format", "index", "far"])
def test_a_forged_manifest_is_refused(root: Path, change: str) -> None:
    path = root / "shards.json"
    values = json.loads(path.read_text())
    if change == "outside":
        values["shards"][0]["file"] = "../secret"
    elif change == "format":
        values["format"] = 2
    elif change == "index":
        values["index_sha256"] = "0" * 64
    elif change == "far":
        for shard in values["shards"]:
            shard["bytes"] = 10
    path.write_text(json.dumps(values))
    with pytest.raises(TicketryError):
        content(task(root))


def test_the_index_is_not_unpickled(root: Path) -> None:
    file = io.BytesIO()
    np.savez(file, shard=np.array([object()], dtype=object))
    (root / "index.npz").write_bytes(file.getvalue())
    values = json.loads((root / "shards.json").read_text())
    values["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (root / "shards.json").write_bytes(msgspec.json.encode(values))
    with pytest.raises(DataError, match="no index of shards"):
        task(root).load()


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["s3", "az"])
def test_from_a_bucket(provider: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 by moto's server, Azure by azurite."""
    server = buckets.moto_server() if provider == "s3" else azurite.azurite_server()
    module = buckets if provider == "s3" else azurite
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TICKETRY_OFFLINE", raising=False)
    with server as endpoint:
        for name, value in module.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        make = buckets.made_bucket if provider == "s3" else azurite.made_container
        address = f"{provider}://{make(endpoint, 'images')}/in/shards"
        from obstore import put
        from obstore.store import from_url

        store = from_url(address, client_options={"allow_http": True})
        for path in root.iterdir():
            put(store, path.name, path.read_bytes())
        assert task(address).key() == task(root).key()
        assert content(task(address)) == content(task(root))
