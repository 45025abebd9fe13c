"""Lets torchvision be imported beside a PyTorch its compiled operators were not built for: import this before it.

torchvision's Python code registers gradients for operators that its binary part declares; where that part cannot be
loaded (a CUDA build beside the CPU-only PyTorch, say) the import fails. Declaring them is all it takes: networks that
don't call them run as ever, and those that do are told that the operator has no implementation.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

DETECTION = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
ROIS = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
DEFORM = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
STEPS = "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, {ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {ROIS}, {DETECTION}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, {ROIS}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {ROIS}, {DETECTION}) -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, {ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor mapping, {ROIS}, int sampling_ratio, {DETECTION})"
    " -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, {ROIS}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor mapping, {ROIS}, {DETECTION}) -> Tensor",
    f"deform_conv2d({DEFORM}, {STEPS} dil_h, SymInt dil_w, SymInt groups, SymInt offset_groups, bool use_mask)"
    " -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {DEFORM}, {STEPS} dilation_h, SymInt dilation_w, SymInt groups,"
    " SymInt offset_groups, bool use_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def loads() -> bool:
    """Whether torchvision's own binary part can be loaded here."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return True
    try:
        for library in sorted(Path(found.submodule_search_locations[0]).glob("_C*.so")):
            torch.ops.load_library(str(library))
    except (OSError, RuntimeError):
        return False
    return True


library = None
if not loads():
    library = torch.library.Library("torchvision", "DEF")  # kept: the declarations live as long as it does
    for schema in SCHEMAS:
        library.define(schema)
