"""CIFAR-10: 50 000 / 10 000 images of 32x32, one of 10 classes each: classification, the label is one pixel.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html.

    cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch              pickled by Python 2; see `pickled`
    cifar-10-batches-bin/data_batch_1.bin ... data_batch_5.bin, test_batch.bin     3073 bytes an image
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from secateur.data.dataset import Sample, SegmentationDataset, Size, limited
from secateur.data.pairs import open_root
from secateur.data.pickled import read_pickled
from secateur.data.voc2012 import colour_map
from secateur.errors import DataError, nearest

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
SHAPE = (3, 32, 32)  # how the bytes of an image are ordered: all of red, green, blue; rows; columns
BYTES = 3 * 32 * 32


class CIFAR10(SegmentationDataset):
    """One split of CIFAR-10.

    Args:
        root: cifar-10-batches-py or cifar-10-batches-bin, or the folder that it is in.
        split: "train" or "test".
        size: (height, width) that images are brought to; None leaves them at 32x32.
        limit: only the first so many images.

    Raises:
        DataError: the folder, the split or one of the files is missing, or a file is damaged.
    """

    task = "classification"
    splits = ("train", "test")

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = (32, 32),
        limit: int | None = None,
    ) -> None:
        super().__init__("cifar10", CLASSES, colour_map(len(CLASSES) + 1)[1:], split, size)
        if split not in BATCHES:
            raise DataError(f"cifar10: no split {split!r}; {nearest(split, BATCHES)}")
        self._files = _files(open_root("cifar10", root, "cifar-10-batches-py or cifar-10-batches-bin"), split)
        self._content: tuple[np.ndarray, np.ndarray] | None = None
        self._length = limited(len(self._read_files()[1]), limit)

    def __len__(self) -> int:
        return self._length

    def load(self, index: int) -> Sample:
        images, labels = self._read_files()
        image = np.ascontiguousarray(images[index].reshape(SHAPE).transpose(1, 2, 0))
        return Sample(image, labels[index].reshape(1, 1), name=f"{self.split} image {index}")

    def _read_files(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 3072) and labels (N) of all batches, uint8."""
        if self._content is None:
            batches = [_pickled(path) if path.suffix != ".bin" else _binary(path) for path in self._files]
            images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
            self._content = images, labels
        return self._content

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_content": None}


def _files(root: Path, split: str) -> list[Path]:
    names = BATCHES[split]
    folders = {
        ending: [folder for folder in (root, root / f"cifar-10-batches-{version}") if folder.is_dir()]
        for ending, version in (("", "py"), (".bin", "bin"))
    }
    choices = [[folder / (name + ending) for name in names] for ending, places in folders.items() for folder in places]
    best = max(choices, key=lambda paths: sum(path.is_file() for path in paths))
    missing = [path for path in best if not path.is_file()]
    if len(missing) == len(best):
        raise DataError(f"cifar10: there is neither {names[0]} nor {names[0]}.bin in {root}")
    if missing:
        raise DataError(f"cifar10: there is no file {missing[0]}; expected {len(best)} batches")
    return best


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickled(path)
    images, labels = content.get("data"), content.get("labels")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != BYTES:
        raise DataError(f"batch {path} holds no data of {BYTES} bytes an image; expected a batch of CIFAR-10")
    numbers = [each for each in labels if isinstance(each, int)] if isinstance(labels, list) else []
    if len(numbers) != len(images) or labels != numbers:
        raise DataError(f"batch {path} does not hold one label for each of its {len(images)} images")
    return images, _checked(np.array(numbers, np.int64), path)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"batch {path} can't be read: {error.strerror or error}") from error
    if not len(data) or len(data) % (1 + BYTES):
        raise DataError(
            f"batch {path} has {len(data)} bytes, which is not a number of images of {1 + BYTES}; copy or download it "
            "again"
        )
    records = data.reshape(-1, 1 + BYTES)
    return records[:, 1:], _checked(records[:, 0], path)


def _checked(labels: np.ndarray, path: Path) -> np.ndarray:
    wrong = (labels < 0) | (labels >= len(CLASSES))
    if wrong.any():
        raise DataError(f"batch {path} holds the label {labels[wrong][0]}; expected 0..{len(CLASSES) - 1}")
    return labels.astype(np.uint8)
