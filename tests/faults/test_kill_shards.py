"""Kill -9 in the middle of an epoch of a training that reads shards: it goes on with the same images, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.searching import Search, assert_same, searched_here
from ticketry.tasks.data.shards import write_shards


def shards(folder: Path) -> Path:
    """240 images of noise in three classes that differ in brightness, in some ten shards."""
    draw = np.random.Generator(np.random.PCG64(0))
    for part, count in (("train", 70), ("val", 10)):
        for number in range(3):
            images = folder / "images" / part / f"class-{number}"
            images.mkdir(parents=True)
            for index in range(count):
                pixels = (draw.random((20, 24, 3)) * 120 + 60 * number).astype(np.uint8)
                Image.fromarray(pixels).save(images / f"{index:03}.png")
    return write_shards(folder / "images", folder / "shards", megabytes=0.03)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    root = shards(tmp_path)
    quick = [
        *("search", "iterative", "--task", "imageshards", "--model", "lenet-300-100", "--levels", "1"),
        *("--option", f"path={root}", "size=16", "resize=16", "window=3", "workers=2", "--replicates", "1"),
        *("--recipe.length", "8.5ep", "--recipe.batch", "16", "--recipe.augment", "resized_crop,flip"),
        *("--rewind", "3it", "--checkpoint-seconds", "0.02", "--json"),
    ]
    store = tmp_path / "store"
    search = Search(store, quick=quick, workers=0)
    assert search.wait_for("partial/*.safetensors"), "it ended before it could be killed"
    search.kill_all()
    assert search.finish()[0] == -signal.SIGKILL
    partials = list(store.glob("partial/*"))
    assert partials
    result = searched_here(store, quick=quick)
    undisturbed = searched_here(tmp_path / "undisturbed", quick=quick)
    assert result["now"]["steps_trained"] < undisturbed["now"]["steps_trained"]
    assert_same(json.loads(json.dumps(result)), undisturbed)
