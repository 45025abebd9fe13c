"""Looks at every sample of a data set once: what there is of each class, which sizes, what is missing or damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.data.dataset import SegmentationDataset
from secateur.data.parallel import in_parallel
from secateur.errors import DataError


@dataclass(frozen=True)
class Scan:
    """What was found in one split.

    samples: how many there are.
    pixels: labelled pixels of each class, at the images' own sizes; of whole images the number of images.
    images: samples that each class occurs in.
    void: pixels that belong to no class.
    sizes: samples by "heightxwidth".
    missing: files that should be there.
    damaged: what is wrong with the samples that can't be used, in a sentence each.
    """

    samples: int
    pixels: dict[str, int]
    images: dict[str, int]
    void: int
    sizes: dict[str, int]
    missing: list[str]
    damaged: list[str]

    @property
    def ok(self) -> bool:
        """Whether every sample can be used."""
        return not self.missing and not self.damaged

    @property
    def problem(self) -> str:
        """What is wrong, in a few words."""
        return f"{len(self.missing)} files are missing, {len(self.damaged)} samples can't be used"

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `share` is that of all labelled pixels."""
        labelled = max(1, sum(self.pixels.values()))
        classes = {
            name: {"pixels": count, "share": count / labelled, "images": self.images[name]}
            for name, count in self.pixels.items()
        }
        return {
            "ok": self.ok,
            "samples": self.samples,
            "sizes": self.sizes,
            "classes": classes,
            "void": self.void,
            "missing": self.missing,
            "damaged": self.damaged,
        }


def scan(dataset: SegmentationDataset, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Reads every sample as it is stored, also of a data set that was opened with `complete=False`.

    Args:
        dataset: what is looked at; nothing is kept in memory.
        workers: threads that read.
        progress: called with (samples read, samples in all).
    """

    def look(index: int) -> tuple[np.ndarray, str] | list[str] | str:
        missing = dataset.missing(index)
        if missing:
            return missing
        try:
            sample = dataset.load(index)
        except DataError as error:
            return str(error)
        height, width = sample.image.shape[:2]
        return np.bincount(sample.label.ravel(), minlength=256), f"{height}x{width}"

    count, missing, damaged = len(dataset), [], []
    pixels, images, sizes = np.zeros(256, np.int64), np.zeros(256, np.int64), Counter[str]()
    for done, found in enumerate(in_parallel(look, count, workers), start=1):
        if isinstance(found, str):
            damaged.append(found)
        elif isinstance(found, list):
            missing += found
        else:
            pixels += found[0]
            images += found[0] > 0
            sizes[found[1]] += 1
        if progress is not None:
            progress(done, count)
    names = dataset.classes
    return Scan(
        count,
        {name: int(pixels[number]) for number, name in enumerate(names)},
        {name: int(images[number]) for number, name in enumerate(names)},
        int(pixels[len(names) :].sum()),
        dict(sizes.most_common()),
        missing,
        damaged,
    )
