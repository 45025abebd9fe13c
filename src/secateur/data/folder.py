"""Any folder of images and masks, described by a small YAML file.

    images: images/{split}               # {split} stands for train, val ...
    masks: masks/{split}/{name}.png      # the mask of each image; {name} is the image's, without its ending
    masks_hold: colours                  # those of the classes; or numbers: 0, 1, 2 ... in the order of the classes
    ignore: [0, 0, 0]                    # what is void in the masks, a colour or a number; or a list of several
    classes:
      road: [128, 64, 128]
      sky: [70, 130, 180]

Images may lie in folders inside that folder; {name} has these in front. Instead of `images` and `masks`,
`lists: lists/{split}.txt` names list files with a line 'image mask' for each sample. Paths are relative to the YAML
file. Where masks hold numbers, which is what they do if nothing is said, `classes` may also be a list of names, or give
the number of each, as in `road: 7`; void is 255 then, if nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from secateur.data.dataset import IGNORE, Size
from secateur.data.files import IMAGE_ENDINGS
from secateur.data.labels import Code, Colour, Colours, Numbers
from secateur.data.pairs import Pair, PairDataset, listed_pairs
from secateur.data.voc2012 import colour_map
from secateur.errors import DataError, nearest

KEYS = ("classes", "ignore", "images", "lists", "masks", "masks_hold")
FILE = "dataset.yaml"  # its name, where a folder is given
MOST = 254  # classes


class Folder(PairDataset):
    """One split of a folder of images and masks.

    Args:
        root: the YAML file, or the folder that it is in as dataset.yaml.
        split: what stands for {split} in its paths.
        size: (height, width) that images and masks are brought to; None leaves them as they are.
        limit: only the first so many samples.

    Raises:
        DataError: the file can't be read, says something that is not understood, or names folders that are missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        size: Size | None = None,
        limit: int | None = None,
    ) -> None:
        if root is None:
            raise DataError(f"folder needs a root: the YAML file that describes it, or the folder with its {FILE}")
        path = Path(root).expanduser()
        description = describe(path / FILE if path.is_dir() else path)
        super().__init__(
            "folder",
            description.classes,
            description.palette,
            split,
            size,
            root=description.path.parent,
            pairs=description.pairs(split),
            code=description.code,
            limit=limit,
        )


@dataclass(frozen=True)
class Description:
    """What a YAML file says of a data set."""

    path: Path
    images: str
    masks: str
    lists: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    code: Code

    def pairs(self, split: str) -> list[Pair]:
        """Image and mask of every sample of a split."""
        root = self.path.parent
        if self.lists:
            return listed_pairs(root, root / self.lists.replace("{split}", split))
        folder = root / self.images.replace("{split}", split)
        if not folder.is_dir():
            raise DataError(f"{self.path}: images: there is no folder {folder} for the split {split!r}")
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
        names = [path.relative_to(folder).with_suffix("").as_posix() for path in found]
        masks = self.masks.replace("{split}", split)
        return [(path, root / masks.replace("{name}", name)) for path, name in zip(found, names, strict=True)]


def describe(path: Path) -> Description:
    """Reads the YAML file of a data set.

    Raises:
        DataError: the file can't be read, or says something that is not understood.
    """
    values = _read(path)
    paths = {key: _text(values, key, path) for key in ("images", "masks", "lists")}
    if bool(paths["lists"]) == bool(paths["images"] or paths["masks"]) or bool(paths["images"]) != bool(paths["masks"]):
        raise DataError(f"{path}: expected `images` and `masks`, or `lists`")
    for key, mark in (("images", "{split}"), ("masks", "{name}"), ("lists", "{split}")):
        if paths[key] and mark not in paths[key]:
            raise DataError(f"{path}: {key}: expected {mark} in it, got {paths[key]!r}")
    coloured = _choice(values, path)
    named = _classes(values.get("classes"), path)
    shown = [value if isinstance(value, tuple) else None for value in named.values()]
    default = colour_map(len(named) + 1)[1:]
    ignored = _ignored(values["ignore"], coloured, path) if "ignore" in values else [] if coloured else [IGNORE]
    return Description(
        path,
        **paths,
        classes=tuple(named),
        palette=tuple(colour or other for colour, other in zip(shown, default, strict=True)),
        code=_code(named, ignored, coloured, path),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = YAML(typ="safe", pure=True).load(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"the description {path} of the data set can't be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, YAMLError, ValueError, RecursionError) as error:
        problem = str(getattr(error, "problem", None) or error).strip().splitlines()[0]
        raise DataError(f"{path}: not valid YAML: {problem}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected the keys {', '.join(KEYS)}")
    for key in values:
        if key not in KEYS:
            raise DataError(f"{path}: unknown key {key!r}; {nearest(str(key), KEYS)}")
    return values


def _text(values: Mapping[str, Any], key: str, path: Path) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise DataError(f"{path}: {key}: expected a path, got {value!r}")
    return value


def _choice(values: Mapping[str, Any], path: Path) -> bool:
    """Whether the masks hold colours."""
    value = values.get("masks_hold", "numbers")
    if value not in ("numbers", "colours"):
        raise DataError(f"{path}: masks_hold: expected numbers or colours, got {value!r}")
    return value == "colours"


def _classes(given: Any, path: Path) -> dict[str, int | Colour | None]:
    """Name -> its value in the masks, its colour, or None where only names are given."""
    if isinstance(given, dict):
        classes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    else:
        names = given if isinstance(given, list) else []
        classes = {name: None for name in names if isinstance(name, str)}
        if len(classes) < len(names):
            raise DataError(f"{path}: classes: expected names that differ, got {given!r}")
    right = classes and all(isinstance(name, str) for name in classes)
    kinds = {None if value is None else _is_colour(value) for value in classes.values()}
    if not right or len(kinds) != 1 or not all(v is None or _is_number(v) or _is_colour(v) for v in classes.values()):
        raise DataError(
            f"{path}: classes: expected a list of names, the colour of each as in `road: [128, 64, 128]`, or the "
            f"number of each as in `road: 7`, 0 to 255; got {given!r}"
        )
    if len(classes) > MOST:
        raise DataError(f"{path}: classes: {len(classes)} are given; there may be {MOST}")
    return classes


def _ignored(given: Any, coloured: bool, path: Path) -> list[Any]:
    """The values or colours that are void."""
    several = given if isinstance(given, list) and not (coloured and _is_colour(tuple(given))) else [given]
    found = [tuple(value) if isinstance(value, list) else value for value in several]
    if not all(_is_colour(value) if coloured else _is_number(value) for value in found):
        kind = "a colour as in [0, 0, 0]" if coloured else "a number, 0 to 255"
        raise DataError(f"{path}: ignore: expected {kind}, or a list of several, got {given!r}")
    return found


def _code(named: Mapping[str, int | Colour | None], ignored: list[Any], coloured: bool, path: Path) -> Code:
    """What the masks' pixels mean."""
    numbers = {name: number for number, name in enumerate(named)}
    if coloured and not all(_is_colour(value) for value in named.values()):
        raise DataError(f"{path}: masks_hold: colours: expected the colour of each class, as in `road: [128, 64, 128]`")
    # of names alone, and of colours that only show, the values are 0, 1, 2 ...
    values = {name: value if coloured or _is_number(value) else numbers[name] for name, value in named.items()}
    meanings: dict[Any, int] = {}
    for value, number in [*((value, numbers[name]) for name, value in values.items()), *((v, IGNORE) for v in ignored)]:
        if value in meanings:
            raise DataError(
                f"{path}: {value} stands for two things; expected values that differ, of classes and ignore"
            )
        meanings[value] = number
    if coloured:
        return Colours(meanings)
    void = f", {' and '.join(map(str, ignored))} for void" if ignored else ""
    return Numbers(meanings, allowed=f"{', '.join(map(str, values.values()))} for the classes{void}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_colour(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_is_number(channel) for channel in value)
