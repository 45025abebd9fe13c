"""Images a second that a loader brings with full augmentation: secateur's, and the obvious loop of Pillow and NumPy.

    python benchmarks/data_loading.py data/camvid [--data camvid --size 360x480 --workers 2 --epochs 3]

Both read, scale, rotate, shift, flip and normalise every image into float32 batches in the same number of worker
processes, and both in epochs that alternate. The loop is what one writes first: a torch data set that opens image and
label with Pillow, transforms them with Pillow's own resize and rotate, and divides arrays. secateur keeps what it has
decoded in memory, so its first epoch, which decodes, is told apart from the later ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secateur.data import Augment, PairDataset, make_loader, open_dataset

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Plain(Dataset[tuple[Tensor, Tensor]]):
    """Image and label of a pair of files, as Pillow and NumPy make them."""

    def __init__(self, pairs: list[tuple[Path, Path]], size: tuple[int, int]) -> None:
        self.pairs, self.size, self.random = pairs, size, np.random.default_rng()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        height, width = self.size
        image, label = (Image.open(path) for path in self.pairs[index])
        image, label = image.convert("RGB").resize((width, height), Image.BILINEAR), label.resize((width, height), 0)
        scale, angle = self.random.uniform(0.75, 1.5), self.random.uniform(-10, 10)
        shift = self.random.uniform(-0.1, 0.1, 2) * (width, height)
        scaled = round(width * scale), round(height * scale)
        image = image.resize(scaled, Image.BILINEAR).rotate(angle, Image.BILINEAR, fillcolor=(124, 116, 104))
        label = label.resize(scaled, Image.NEAREST).rotate(angle, Image.NEAREST, fillcolor=255)
        left, top = (round((new - old) / 2 + by) for new, old, by in zip(scaled, (width, height), shift, strict=True))
        image, label = (each.crop((left, top, left + width, top + height)) for each in (image, label))
        if self.random.random() < 0.5:
            image, label = (each.transpose(Image.FLIP_LEFT_RIGHT) for each in (image, label))
        pixels = (np.asarray(image) / 255.0 - MEAN) / STD
        return torch.from_numpy(pixels.transpose(2, 0, 1)).float(), torch.from_numpy(np.array(label)).long()


def rate(batches: object) -> float:
    """Images a second."""
    begin, images = time.perf_counter(), 0
    for batch, _ in batches:  # type: ignore[attr-defined]
        images += len(batch)
    return images / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    dataset = open_dataset(options.data, options.root, size=(height, width))
    if not isinstance(dataset, PairDataset):
        parser.error(f"{options.data} is not a data set of image and label files")
    ours = make_loader(
        dataset, options.batch, training=True, workers=options.workers, augment=Augment(), channels_last=True
    )
    plain = DataLoader(
        Plain(dataset.pairs, (height, width)), options.batch, shuffle=True, num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )  # fmt: skip
    rates: dict[str, list[float]] = {"secateur": [], "loop": []}
    for epoch in range(options.epochs):
        rates["secateur"].append(rate(ours.epoch(epoch)))
        rates["loop"].append(rate(plain))
    first, later = rates["secateur"][0], statistics.median(rates["secateur"][1:] or rates["secateur"])
    loop = statistics.median(rates["loop"])
    print(json.dumps({"images": len(dataset), "size": options.size, "workers": options.workers, **rates}))
    print(f"secateur, first epoch  {first:7.1f} images/s  {first / loop:5.2f} times the loop")
    print(f"secateur, later        {later:7.1f} images/s  {later / loop:5.2f} times the loop")
    print(f"Pillow and NumPy       {loop:7.1f} images/s")


if __name__ == "__main__":
    main()
