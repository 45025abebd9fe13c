"""What the losses of auxiliary heads count is the network's to say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ModelError
from secateur.metrics import all_logits
from secateur.training.optimize import auxiliary_weights, segmentation_loss


class Said(nn.Module):
    auxiliary_weights = (0.4, 0.16)


@pytest.mark.parametrize(
    ("name", "weights"), [("pspnet50", (0.4,)), ("pspnet101", (0.4,)), ("icnet", (0.4, 0.16)), ("unet", None)]
)
def test_the_networks_of_the_papers_have_the_papers_weights(name: str, weights: tuple[float, ...] | None) -> None:
    model = secateur.create_model(name, classes=3, width=4).train()
    assert auxiliary_weights(model) == weights
    assert len(all_logits(model(torch.randn(2, 3, 64, 64)))) == 1 + len(weights or ())


def test_side_heads_count_what_the_network_says() -> None:
    torch.manual_seed(0)
    heads, labels = [torch.randn(2, 3, side, side) for side in (8, 4, 2)], torch.randint(0, 3, (2, 8, 8))
    alone = [segmentation_loss(head, labels).item() for head in heads]
    for weights, expected in ((auxiliary_weights(Said()), (0.4, 0.16)), (None, (0.4, 0.4)), ((0, 2), (0, 2))):
        loss = segmentation_loss(tuple(heads), labels, weights=weights).item()
        assert loss == pytest.approx(alone[0] + expected[0] * alone[1] + expected[1] * alone[2], rel=1e-5)
    assert segmentation_loss(heads[0], labels, weights=(0.4, 0.16)).item() == pytest.approx(alone[0])  # in eval mode


def test_the_side_head_of_the_lowest_resolution_counts_least() -> None:
    model, image = secateur.create_model("icnet", classes=3, width=4).train(), torch.randn(2, 3, 64, 64)
    sizes = [tuple(logits.shape[-2:]) for logits in all_logits(model(image))]
    assert sizes == [(16, 16), (8, 8), (4, 4)]


def test_weights_that_do_not_fit_are_named() -> None:
    heads, labels = (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ModelError, match=r"1 auxiliary outputs .* auxiliary_weights are \(0.4, 0.16\)"):
        segmentation_loss(heads, labels, weights=(0.4, 0.16))
    model = nn.Conv2d(3, 3, 1)
    for wrong in (0.4, ("a",), (-1.0,), (float("nan"),)):
        model.auxiliary_weights = wrong  # type: ignore[assignment]
        with pytest.raises(ModelError, match=r"Conv2d\.auxiliary_weights is .*expected a list or tuple of numbers"):
            auxiliary_weights(model)
