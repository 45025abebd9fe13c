"""Minority classes, and rankings of channels that favour them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.errors import DataError, MethodError, nearest
from secateur.methods.material import Material

Minority = int | Sequence[str | int] | str | None


def pixel_counts(material: Material, model: nn.Module) -> NDArray[np.int64]:
    """Labelled pixels of every class in the data, int64 (K,); void is not counted.

    Raises:
        DataError: no pixel has one of the classes.
    """
    counts = np.zeros(len(material.class_names), dtype=np.int64)
    for _, target in material.batches(model):
        labels = target[(target >= 0) & (target < len(counts))].flatten()
        counts += torch.bincount(labels, minlength=len(counts)).cpu().numpy()
    if not counts.any():
        raise DataError(f"no pixel of the data has one of the {len(counts)} classes; are the labels numbered from 0?")
    return counts


def rarest_first(counts: NDArray[np.int64]) -> list[int]:
    """The labels that occur, by their number of pixels."""
    return [int(label) for label in np.argsort(counts, kind="stable") if counts[label]]


def minority_of(counts: NDArray[np.int64], wanted: Minority, names: Sequence[str]) -> list[int]:
    """The labels of the minority classes, rarest first.

    Args:
        counts: pixels of every class, int64 (K,).
        wanted: None: the rarer half of the classes that occur, rounded down, but at least one. A number: so many of
            the rarest. Names or labels: these.
        names: of all classes.
    """
    order = rarest_first(counts)
    if wanted is None:
        return order[: max(1, len(order) // 2)]
    if isinstance(wanted, int):
        return order[:wanted]
    labels = labels_of(wanted, names)
    return [label for label in np.argsort(counts, kind="stable").tolist() if label in labels]


def labels_of(wanted: Minority, names: Sequence[str]) -> list[int]:
    """The labels of classes that are given by name or label; of a number or None, none.

    Raises:
        MethodError: there is no such class, or too few of them.
    """
    if wanted is None:
        return []
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(names):
            raise MethodError(f"minority {wanted}: a number of classes from 1 to {len(names)} was expected, or a list")
        return []
    labels = []
    for entry in [wanted] if isinstance(wanted, str) else wanted:
        if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(names):
            labels.append(entry)
        elif isinstance(entry, str) and entry in names:
            labels.append(list(names).index(entry))
        elif isinstance(entry, int):
            raise MethodError(f"minority names class {entry}; there are the labels 0 to {len(names) - 1}")
        else:
            raise MethodError(f"minority names class {entry!r}; {nearest(str(entry), names)}")
    if not labels:
        raise MethodError("minority names no class; give names or labels, a number, or null for the rarer half")
    return labels


def interleaved(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Channels from the most important to the least, by classes in turn.

    Every class ranks the channels by descending score. The channels that are first come first, in the order of the
    classes, then those that are second, and so on; each counts where it appears first.

    Args:
        scores: (classes, channels), in the order of the classes.

    Returns:
        int64 (channels), a permutation; ties by channel.
    """
    rankings = np.argsort(-scores, axis=1, kind="stable")  # (classes, places)
    in_turn = rankings.T.ravel()
    _, first = np.unique(in_turn, return_index=True)
    return in_turn[np.sort(first)]


def by_rank_sum(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Channels from the most important to the least, by the sum of their ranks over all classes; ties by channel.

    Args:
        scores: (classes, channels).
    """
    places = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    return np.argsort(places.sum(0), kind="stable")
