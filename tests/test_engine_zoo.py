"""A few networks of three libraries; benchmarks/engine_zoo.py prunes all of them. Needs the extra `zoo`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import secateur

if not all(importlib.util.find_spec(name) for name in ("torchvision", "timm", "segmentation_models_pytorch")):
    pytest.skip('needs the extra: pip install -e ".[zoo]"', allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import engine_zoo  # makes torchvision importable beside a PyTorch without CUDA


@pytest.mark.parametrize(
    "name, most",
    [
        ("torchvision:resnet18", 0.4),
        ("torchvision:shufflenet_v2_x0_5", 0.75),
        ("torchvision:fcn_resnet50", 0.4),
        ("timm:res2net50_14w_8s", 0.4),
        ("timm:convnext_atto", 0.7),
        ("smp:unetplusplus/mobilenet_v2", 0.5),
        ("smp:segformer/resnet18", 0.4),
    ],
)
def test_half_of_it_goes_exactly(name: str, most: float) -> None:
    row = engine_zoo.attempt(name)
    assert row["outcome"] == "exact", row
    assert row["after"] <= most * row["before"] and row["unexplained"] == 0
    assert not [text for text in row["warnings"] if "failed verification" in text]


def test_whole_heads_of_a_transformer_go() -> None:
    model = engine_zoo.build("timm:vit_tiny_patch16_224")
    result = secateur.prune(model, torch.randn(1, 3, 224, 224), pruning_ratio=0.4, scope="group")
    attention = result.model.blocks[0].attn
    assert attention.num_heads == 2 and attention.head_dim == 64
    assert attention.qkv.out_features == 3 * 2 * 64 and attention.proj.in_features == 2 * 64
    assert result.report.ok and not result.warnings
