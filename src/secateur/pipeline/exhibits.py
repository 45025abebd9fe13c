"""What a run keeps for its report beside the numbers: pictures one by one, widths of layers, scales of batch norms;
and the report itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.data.files import resize_image, resize_label, write_label
from secateur.files import atomic_path, write_text
from secateur.report.page import report_page
from secateur.report.run_record import read_rows

__all__ = ["keep_pictures", "scales_of", "widths_of", "write_report"]

_SIDE = 960  # pixels; larger pictures are kept smaller
_BINS = 60


def keep_pictures(
    folder: Path,
    names: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    maps: Mapping[str, Sequence[NDArray[Any]]],
    palette: Sequence[tuple[int, int, int]],
) -> list[dict[str, Any]]:
    """Writes every image as JPEG and every map of classes as PNG in the data set's colours.

    Args:
        folder: where to; its parent is the run folder.
        names: what the samples are called.
        images: uint8 HxWx3, RGB.
        maps: what they show -> HxW class indices of every sample; 255 is void, and black.
        palette: RGB of every class.

    Returns:
        For every sample `{"name": ..., "pictures": {what it shows: path from the run folder}}`.
    """
    kept = []
    for number, (name, image) in enumerate(zip(names, images, strict=True)):
        shrink = min(1.0, _SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[0] * shrink)), max(1, round(image.shape[1] * shrink))
        small = image if shrink == 1 else resize_image(image, size)
        files = {"image": folder / f"{number}_image.jpg"}
        done, data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
        assert done
        with atomic_path(files["image"]) as temporary:
            temporary.write_bytes(data.tobytes())
        for what, each in maps.items():
            label = np.asarray(each[number]).astype(np.uint8)
            files[what] = folder / f"{number}_{what}.png"
            write_label(files[what], label if shrink == 1 else resize_label(label, size), palette)
        kept.append({"name": name, "pictures": {what: f"{folder.name}/{file.name}" for what, file in files.items()}})
    return kept


def widths_of(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """Channels of every convolution and linear layer, before and after, in the order of the modules."""
    there = dict(after.named_modules())
    widths = {}
    for name, module in before.named_modules():
        for key in ("out_channels", "out_features"):
            if isinstance(value := getattr(module, key, None), int) and isinstance(
                getattr(module, "weight", None), Tensor
            ):
                widths[name] = [value, int(getattr(there.get(name), key, value))]
    return widths


def scales_of(network: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Histograms of the absolute values of all batch norms' scales.

    Args:
        network: says which tensors are scales.
        states: what they are of -> a state dict.

    Returns:
        `{"edges": [...], "counts": {what they are of: [...]}}`; counts are empty where there are no scales.
    """
    names = [
        f"{name}.weight" if name else "weight"
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and module.weight is not None
    ]
    values = {
        what: torch.cat([state[name].detach().float().abs().flatten().cpu() for name in names]).numpy()
        for what, state in states.items()
        if names and all(name in state for name in names)
    }
    top = max((float(each.max()) for each in values.values() if np.isfinite(each).all()), default=0.0)
    edges = np.linspace(0, top or 1.0, _BINS + 1)
    counts = {what: np.histogram(each[np.isfinite(each)], edges)[0].tolist() for what, each in values.items()}
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts}


def write_report(path: Path, what: Sequence[str]) -> None:
    """Writes the page of some runs.

    Args:
        path: the file.
        what: see `read_rows`.
    """
    write_text(path, report_page(read_rows(what)))
