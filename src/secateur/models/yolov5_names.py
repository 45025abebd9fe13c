"""What the tensors of YOLOv5's released weights (release 5.0) are called here.

They number the layers of the network from 0 to 24, `model.4.m.2.cv1.conv.weight`; the numbers are those of the
published layout.
"""

from __future__ import annotations

import re

# of the layers that have tensors; the others upsample and concatenate
_LAYERS = {
    0: "backbone.focus", 1: "backbone.down4", 2: "backbone.stage4", 3: "backbone.down8", 4: "backbone.stage8",
    5: "backbone.down16", 6: "backbone.stage16", 7: "backbone.down32", 8: "backbone.pyramid", 9: "backbone.stage32",
    10: "neck.narrow32", 13: "neck.up16", 14: "neck.narrow16", 17: "neck.up8", 18: "neck.down16", 20: "neck.out16",
    21: "neck.down32", 23: "neck.out32", 24: "detect",
}  # fmt: skip
_C3 = {"cv1": "through", "cv2": "past", "cv3": "join"}
_SPP = {"cv1": "narrow", "cv2": "join"}
_BOTTLENECK = {"cv1": "first", "cv2": "second"}


def own_name(released: str) -> str | None:
    """What a tensor of the released weights is called here; a name of another kind stays as it is.

    None: it holds nothing of its own (the anchors are there twice).
    """
    found = re.fullmatch(r"model\.(\d+)\.(.+)", released)
    if found is None or int(found[1]) not in _LAYERS:
        return released
    number, rest = int(found[1]), found[2]
    if number == 24:
        return None if rest == "anchor_grid" else f"detect.{re.sub(r'^m[.]', 'heads.', rest)}"
    inner = re.fullmatch(r"m\.(\d+)\.(cv[12])\.(.+)", rest)
    if inner is not None:
        rest = f"blocks.{inner[1]}.{_BOTTLENECK[inner[2]]}.{inner[3]}"
    else:
        first, _, last = rest.partition(".")
        rest = f"{(_SPP if number == 8 else _C3).get(first, first)}.{last}"
    return f"{_LAYERS[number]}.{rest}"
