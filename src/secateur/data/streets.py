"""Streets: an embedded data set of drawn street scenes with CamVid's classes, palette and class imbalance.

Nothing is downloaded and nothing is stored: sample `index` of a split is drawn from the generator seeded by
(seed, split, index), so that a machine draws the same scene every time. A scene is a street in perspective, in metres,
seen from a car. Poles, signs, fences, pedestrians and bicyclists are rare and small, as they are in CamVid. Colour
tells little: buildings, cars and clothes take theirs from the same range, pavements and roads share their greys, boards
on walls look like signs, and light, haze, shadows and noise change from scene to scene.
"""

from __future__ import annotations

import os

import numpy as np

from secateur.data import streetthings as things
from secateur.data.camvid import COLOURS, SPLITS
from secateur.data.dataset import Sample, SegmentationDataset, Size, limited
from secateur.data.streetscene import Scene, photograph
from secateur.errors import DataError, nearest


class Streets(SegmentationDataset):
    """One split of the drawn streets.

    Args:
        root: not used: the scenes are drawn.
        split: "train", "val" or "test": disjoint scenes of the same kind.
        size: (height, width) that the scenes are drawn at; at least 32.
        limit: only the first so many scenes.
        length: scenes in the training split; each of the others has a quarter of it.
        seed: another seed is another data set.

    Raises:
        DataError: the split is unknown or a number is out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        size: Size | None = (180, 240),
        limit: int | None = None,
        length: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__("streets", tuple(COLOURS), tuple(COLOURS.values()), split, size)
        if split not in SPLITS:
            raise DataError(f"streets: no split {split!r}; {nearest(split, SPLITS)}")
        if size is None:
            raise DataError("streets: size None; expected the (height, width) that scenes are drawn at")
        if min(size) < 32:
            raise DataError(f"streets: size {tuple(size)} is too small to draw a street in; expected at least (32, 32)")
        if length < 1 or seed < 0:
            raise DataError(f"streets: length={length}, seed={seed}; expected at least 1 scene and a seed of 0 or more")
        self.seed = seed
        self._length = limited(length if split == "train" else -(-length // 4), limit)

    def __len__(self) -> int:
        return self._length

    def load(self, index: int) -> Sample:
        assert self.size is not None
        generator = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        scene = Scene(generator, *self.size)
        things.sky(scene)
        things.ground(scene)
        things.roadside(scene)
        things.traffic(scene)
        return Sample(photograph(scene), scene.label, name=f"{self.split} scene {index}")
