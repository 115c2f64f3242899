"""Images in shards of one's own, in a folder or at a URL: ImageNet as WebDataset has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ticketry.errors import TaskError
from ticketry.tasks.data.shard_files import source_of
from ticketry.tasks.data.shards import ShardListing, ShardPictures, ShardSet, open_shards
from ticketry.tasks.images.folder import OPTIONS, FolderClassification, FolderReader, folder_settings
from ticketry.tasks.options import Options
from ticketry.tasks.task import Spec

WINDOW = 16
"""Shards that are mixed, by default: 2 GB of 128 MB each, 20,000 images of ImageNet."""


@dataclass(frozen=True)
class ShardReader(FolderReader):
    """Reads the images of a listing, see `tasks.task.Reader` and `tasks.task.Sharded`."""

    augmentations: ClassVar[tuple[str, ...]] = ("resized_crop",)

    listing: ShardListing  # type: ignore[assignment]
    window: int = WINDOW

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Reads those images to uint8 [b, 3, size, size]."""
        pictures: ShardPictures = self.listing.request(
            rows.tolist(), self.size, self.resize, seed if augment else None, first
        )
        return pictures

    def shards(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.listing.index.shard)[rows]


@dataclass(frozen=True, kw_only=True)
class ShardClassification(FolderClassification):
    """Shards of images, a named network and how it is trained."""

    replayable = True

    address: str
    """A folder or a URL; empty is enough to ask for the recipe."""
    window: int = WINDOW
    path: Path | None = None
    name: str = "imageshards"

    def key(self) -> Mapping[str, object]:
        """What is in the shards, how it is read, split and mixed; neither where they lie nor who reads them."""
        return {**super().key(), "window": self.window}

    @cached_property
    def _files(self) -> Any:
        return self._shards

    @cached_property
    def _shards(self) -> ShardSet:
        if not self.address:
            raise TaskError(
                f"the task {self.name} needs to know where they are: --option path=DIR or a URL, with train-*.tar and"
                " val-*.tar"
            )
        return open_shards(source_of(self.address))

    def _reader(self) -> ShardReader:
        return ShardReader(self._shards.train, self.size, self.resize, self.workers, self.window)


def make(spec: Spec) -> ShardClassification:
    """The task that a request names by its options.

    Raises:
        TaskError: as `folder.make`, and for an address that is none.
    """
    options = Options(spec, (*OPTIONS, "window"))
    address = options.text("path")
    if address:
        source_of(address)
    return ShardClassification(
        **{**folder_settings(spec, options), "path": None},
        address=address,
        window=options.whole("window", WINDOW, least=1),
        spec=spec if "://" in address else options.with_paths(spec, "path"),
    )
