"""Images with labels: data sets by name, augmentation, and the loader.

To add a data set: a file in this folder with a `SegmentationDataset`, a line in `DATASETS`, and its name in the schema
of recipes.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, Literal

import torch
from torch import Tensor

from secateur.data.ade20k import ADE20K
from secateur.data.augment import Augment, Normalise
from secateur.data.camvid import CamVid
from secateur.data.camvid32 import CamVid32
from secateur.data.cifar10 import CIFAR10
from secateur.data.cityscapes import Cityscapes
from secateur.data.dataset import Sample, SegmentationDataset, Size, listing
from secateur.data.folder import Folder
from secateur.data.loader import Loader, make_loader
from secateur.data.pairs import PairDataset
from secateur.data.scan import Scan, scan
from secateur.data.streets import Streets
from secateur.data.voc2012 import VOC2012
from secateur.errors import DataError, nearest

__all__ = [
    "ADE20K", "CIFAR10", "VOC2012", "Augment", "CamVid", "CamVid32", "Cityscapes", "Folder", "Loader", "Normalise",
    "PairDataset", "Sample", "Scan", "SegmentationDataset", "Streets", "class_weights", "list_datasets", "make_loader",
    "open_dataset", "scan",
]  # fmt: skip

DATASETS: dict[str, type[SegmentationDataset]] = {
    "ade20k": ADE20K,
    "camvid": CamVid,
    "camvid32": CamVid32,
    "cifar10": CIFAR10,
    "cityscapes": Cityscapes,
    "folder": Folder,
    "streets": Streets,
    "voc2012": VOC2012,
}


def list_datasets() -> list[str]:
    """The registered names, sorted."""
    return sorted(DATASETS)


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    size: Size | None = (180, 240),
    limit: int | None = None,
    complete: bool = True,
    own_labels: bool = False,
    unreadable: Literal["stop", "skip"] = "stop",
    **options: Any,
) -> SegmentationDataset:
    """One split of a data set.

    Args:
        name: one of `list_datasets()`.
        root: where the data set is, on disk; a drawn one takes none.
        split: "train", "val" or "test"; some have others.
        size: (height, width) of the samples; None leaves each at its own.
        limit: only the first so many samples.
        complete: refuse a data set of which files are missing, rather than its samples when they are read.
        unreadable: "skip" puts others in the place of samples that can't be read, or are missing, in training.
        own_labels: bring only the images to that size, for scores at the labels' own.
        options: the data set's own, for instance `length` of "streets".

    Raises:
        DataError: the name, the split or an option is unknown, or files are missing.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    allowed = set(inspect.signature(DATASETS[name]).parameters) - {"root", "split", "size", "limit"}
    for option in options:
        if option not in allowed:
            hint = nearest(option, allowed) if allowed else "it takes none"
            raise DataError(f"data set {name!r} has no option {option!r}; {hint}")
    dataset = DATASETS[name](root=root, split=split, size=size, limit=limit, **options)  # type: ignore[call-arg]
    dataset.own_labels = own_labels
    dataset.skip_unreadable = unreadable == "skip"
    complete = complete and not dataset.skip_unreadable
    missing = [file for index in range(len(dataset) if complete else 0) for file in dataset.missing(index)]
    if missing:
        raise DataError(listing(f"{name} {split}: {len(missing)} files are missing", missing))
    return dataset


def class_weights(dataset: SegmentationDataset, kind: str = "inverse_log") -> Tensor:
    """Weights of the classes in the loss, float32 (K,): 1 / ln(1.1 + p_k), p_k = share of labelled pixels.

    The form is ENet's (Paszke et al., 2016, https://arxiv.org/abs/1606.02147, there with 1.02). Reads every sample,
    unless `check` has done so.

    Raises:
        DataError: `kind` is unknown, or a sample can't be used.
    """
    if kind != "inverse_log":
        raise DataError(f"unknown class weights {kind!r}; {nearest(kind, ['inverse_log'])}")
    counts = torch.from_numpy(dataset.pixel_counts).double()
    return (1 / torch.log(1.1 + counts / counts.sum().clamp(min=1))).float()
