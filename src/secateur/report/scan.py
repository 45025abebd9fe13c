"""What a data set holds, as a table for the terminal and a line for every split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_SIZES = 3  # of images, the most frequent ones that are named


def scan_table(name: str, splits: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per class: its share of the labelled pixels in every split, and the images that it occurs in.

    Args:
        name: of the data set.
        splits: what a scan of each has found, as JSON values (`Scan.as_dict`).
    """
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for split in splits:
        table.add_column(f"{split}\n%", justify="right", no_wrap=True)
        table.add_column("\nimages", justify="right", no_wrap=True)
    for each in next(iter(splits.values()))["classes"]:
        cells: list[str] = []
        for found in splits.values():
            counted = found["classes"][each]
            cells += [f"{100 * counted['share']:.2f}", str(counted["images"])]
        table.add_row(Text(each), *cells)
    return table


def scan_line(split: str, found: Mapping[str, Any]) -> str:
    """Samples, sizes, void and what is wrong in one split."""
    sizes = [f"{size} ({count})" for size, count in found["sizes"].items()]
    more = f" and {len(sizes) - _SIZES} other sizes" if len(sizes) > _SIZES else ""
    pixels = found["void"] + sum(each["pixels"] for each in found["classes"].values())
    void = f"{100 * found['void'] / pixels:.1f} % void, " if pixels else ""
    return (
        f"{split}: {found['samples']} samples, {', '.join(sizes[:_SIZES]) or 'none can be read'}{more}; {void}"
        f"{len(found['missing'])} files missing, {len(found['damaged'])} samples damaged"
    )
