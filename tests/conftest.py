"""What all tests share: one thread, and a miniature CamVid on disk."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)


def write_pair(root: Path, image: str, label: str, pixels: np.ndarray, classes: np.ndarray) -> None:
    """Writes one BGR image and its single-channel label under `root`."""
    for name, array in ((image, pixels), (label, classes)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), array)


@pytest.fixture
def camvid_mini(tmp_path: Path) -> Path:
    """A data set in CamVid's list-file layout: 6 + 3 images of 48x64, labels 0..11 (11 = void)."""
    root = tmp_path / "camvid mini"
    generator = np.random.default_rng(0)
    number = 0
    for split, count in (("train", 6), ("val", 3)):
        lines = []
        for _ in range(count):
            stem = f"0001TP_{number:06d}"
            number += 1
            # Blocks of 8 pixels: each class is several pixels wide, also after halving the size.
            classes = generator.integers(0, 12, (6, 8)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            pixels = (classes[..., None] * np.array([20, 11, 5]) + generator.integers(0, 9, (48, 64, 3))).astype(
                np.uint8
            )
            write_pair(root, f"{split}/{stem}.jpg", f"{split}annot/{stem}.png", pixels, classes)
            lines.append(f"{split}/{stem}.jpg {split}annot/{stem}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root
