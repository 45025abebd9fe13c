"""Images to try an exported network on: of the run's data set, the user's, or drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.data import SegmentationDataset, open_dataset
from secateur.data.files import read_image, resize_image
from secateur.errors import DataError
from secateur.ship.photos import find_inputs
from secateur.ship.source import Network

__all__ = ["Images", "images_for", "opened"]


@dataclass(frozen=True)
class Images:
    """Photos, RGB uint8 (H, W, 3), and where they come from, in words."""

    photos: Sequence[np.ndarray]
    source: str

    def batch(self, network: Network, size: tuple[int, int]) -> Tensor:
        """All of them at (height, width), normalised as the network expects it: float32 (N, 3, H, W)."""
        shown = [network.normalise(np.ascontiguousarray(resize_image(photo, size))) for photo in self.photos]
        return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()


def images_for(network: Network, paths: Sequence[Path], split: str, wanted: int, say: Callable[[str], None]) -> Images:
    """The user's images; if none are given, those of the run's data set; if that is not there, drawn street scenes.

    Args:
        network: whose recipe names the data set.
        paths: images and folders of them; videos are left out.
        split: of the data set.
        wanted: how many at most, spread evenly.
        say: takes a line on what was left out, and why the data set's images are not used.

    Raises:
        DataError: none of the user's can be read.
    """
    if paths:
        stills = [each.path for each in find_inputs(paths, say) if not each.moves]
        if not stills:
            raise DataError(f"--images {', '.join(map(str, paths))}: only videos; expected images")
        photos = [read_image(path) for path in _spread(stills, wanted)]
        return Images(photos, f"{len(photos)} of {len(stills)} given images")
    try:
        data = opened(network, split)
        photos = [data.read(index).image for index in _spread(range(len(data)), wanted)]
        return Images(photos, f"{len(photos)} of {len(data)} images of {data.name}, {split}")
    except DataError as error:
        say(f"{error}; drawn scenes are used instead, or give --images")
    height, width = network.input_size
    scenes = open_dataset("streets", None, "val", (max(32, height), max(32, width)), wanted)
    return Images([scenes.read(index).image for index in range(len(scenes))], f"{len(scenes)} drawn street scenes")


def opened(network: Network, split: str) -> SegmentationDataset:
    """A split of the data set of a network's recipe, as its run evaluates it.

    Raises:
        DataError: it is not there, or files are missing.
    """
    data, own_labels = network.recipe.data, network.recipe.evaluate.full_size
    options = {"length": data.length, **data.options} if data.name == "streets" else data.options
    return open_dataset(data.name, data.root, split, data.size, data.limit, own_labels=own_labels, **options)


def _spread(items: Sequence, wanted: int) -> list:
    """At most so many of the items, evenly."""
    if len(items) <= wanted:
        return [*items]
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, wanted)]
