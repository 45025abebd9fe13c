"""The classes of a data set and their colours, without its images: where a network is used, these may not be there."""

from __future__ import annotations

import os
from pathlib import Path

from secateur.data import ade20k, camvid, camvid32, cifar10, cityscapes, voc2012
from secateur.data.folder import FILE, describe
from secateur.data.labels import Colour
from secateur.errors import DataError, nearest

Classes = tuple[tuple[str, ...], tuple[Colour, ...]]  # names, and the colour of each

_FIXED: dict[str, Classes] = {
    "ade20k": (tuple(ade20k.CLASSES), tuple(ade20k.PALETTE)),
    "camvid": (tuple(camvid.COLOURS), tuple(camvid.COLOURS.values())),
    "camvid32": (tuple(camvid32.GROUPS), tuple(camvid.COLOURS[name] for name in camvid32.GROUPS)),
    "cifar10": (cifar10.CLASSES, tuple(voc2012.colour_map(len(cifar10.CLASSES) + 1)[1:])),
    "cityscapes": (tuple(c.name for c in cityscapes.CLASSES), tuple(c.colour for c in cityscapes.CLASSES)),
    "streets": (tuple(camvid.COLOURS), tuple(camvid.COLOURS.values())),
    "voc2012": (tuple(voc2012.CLASSES), tuple(voc2012.colour_map(len(voc2012.CLASSES)))),
}


def classes_of(name: str, root: str | os.PathLike[str] | None) -> Classes:
    """Names and colours of a data set's classes, in the order of their numbers.

    Args:
        name: one of `list_datasets()`.
        root: of "folder", the YAML file or its folder, which is read; of others it is not looked at.

    Raises:
        DataError: the name is unknown, or the YAML file can't be read.
    """
    if name in _FIXED:
        return _FIXED[name]
    if name != "folder":
        raise DataError(f"unknown data set {name!r}; {nearest(name, [*_FIXED, 'folder'])}")
    path = Path(root or ".").expanduser()
    description = describe(path / FILE if path.is_dir() else path)
    return description.classes, description.palette
