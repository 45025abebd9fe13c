"""Grad-CAM against its equations written out, on any layer of networks of several kinds, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from own_networks import Residual, Squeezed
from torch import Tensor, nn

import secateur
from secateur.errors import ModelError
from secateur.models import create_model


def by_the_paper(model: nn.Module, x: Tensor, layer: str, label: int, mask: Tensor | None) -> Tensor:
    """One image at a time: alpha_k the mean of dy/dA_k, the ReLU of the weighted sum, brought to the image's size."""
    maps = []
    for i, image in enumerate(x.split(1)):
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(output)
            return output.clone()

        hook = model.get_submodule(layer).register_forward_hook(keep)
        logits = model(image)
        hook.remove()
        if isinstance(logits, dict):  # of half the size, too
            logits = F.interpolate(logits["out"], size=x.shape[2:], mode="bilinear", align_corners=False)
        pixels = logits[0].argmax(0) == label if mask is None else mask[i]
        y = logits[0, label][pixels].sum()
        (gradient,) = torch.autograd.grad(y, kept)
        cam = torch.zeros(kept[0].shape[2:], dtype=x.dtype)
        for k in range(kept[0].shape[1]):
            cam += gradient[0, k].mean() * kept[0][0, k].detach()
        cam = F.interpolate(cam.relu()[None, None], size=x.shape[2:], mode="bilinear", align_corners=False)[0, 0]
        maps.append(cam / cam.max() if cam.max() > 0 else cam)
    return torch.stack(maps)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("unet", "d3"),
        ("unet", "d1.0"),
        ("unet", "up2"),
        ("segnet", "e1.1"),
        ("segnet", "mid"),
        ("pyramid", "trunk"),
        ("pyramid", "bins.1"),
        ("residual", "third"),
        ("squeezed", "enc.2.conv"),
    ],
)
def test_the_map_is_that_of_the_equations(name: str, layer: str) -> None:
    torch.manual_seed(0)
    own = {"residual": Residual, "squeezed": Squeezed}
    model = zoo.randomise(own[name]()).eval().double() if name in own else zoo.build(name).double()
    x = zoo.example().double()
    some = torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    everything, lit = torch.ones(2, 16, 20, dtype=torch.bool), 0
    for label in range(4):
        for region, mask in ((None, None), ("all", everything), (some, some), (some[0], some[:1].expand(2, -1, -1))):
            got = secateur.grad_cam(model, x, layer, label, region)
            torch.testing.assert_close(got, by_the_paper(model, x, layer, label, mask), rtol=1e-8, atol=1e-10)
            assert got.shape == (2, 16, 20) and not got.requires_grad and 0 <= got.min() and got.max() <= 1
            lit += bool(got.any())
    assert lit


def test_the_map_is_bright_where_the_class_is() -> None:
    """The left half is red, the right half blue; channels of the first layer see red and blue."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
        net[0].weight[0, 0, 1, 1] = net[0].weight[1, 2, 1, 1] = 1.0
        net[2].weight.zero_()
        net[2].weight[0, 0] = net[2].weight[1, 1] = 1.0
    image = torch.zeros(1, 3, 8, 12)
    image[0, 0, :, :6] = image[0, 2, :, 6:] = 1.0
    red, blue = (secateur.grad_cam(net, image, "0", label)[0] for label in (0, 1))
    assert (red[:, :6] == 1).all() and not red[:, 6:].any()
    assert (blue[:, 6:] == 1).all() and not blue[:, :6].any()


def test_a_class_that_is_answered_nowhere_has_an_empty_map() -> None:
    model = zoo.build("unet")
    with torch.no_grad():
        model.head.bias[3] = -1e6
    assert not secateur.grad_cam(model, zoo.example(), "u1", 3).any()
    assert secateur.grad_cam(model, zoo.example(), "u1", 3, "all").any()


def test_it_leaves_no_trace() -> None:
    model = zoo.build("segnet").train()
    model.e2.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    model(zoo.example()).sum().backward()
    gradient, state = model.head.weight.grad.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():  # whatever the caller has switched off
        assert secateur.grad_cam(model, zoo.example(), "e2", 1, "all").any()
    assert torch.equal(gradient, model.head.weight.grad) and modes == [m.training for m in model.modules()]
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for n, p in model.named_parameters() if n != "head.weight")


def test_a_pooling_with_indices_and_a_stage_are_layers_too() -> None:
    model = create_model("segnet", classes=5, width=8).eval()
    x = torch.randn(1, 3, 48, 64)
    for layer in ("encoder.stage5", "pool", "decoder.stage4.block1.relu"):
        assert secateur.grad_cam(model, x, layer, 2, "all").shape == (1, 48, 64)


def test_what_is_not_there_is_named() -> None:
    model, x = zoo.build("unet"), zoo.example()
    for arguments, message in (
        (("d33", 1), r"MiniUNet has no module 'd33'; known: .*did you mean 'd3'"),
        (("", 1), "has no module ''"),
        (("d3", 5), "class 5: MiniUNet has 5 classes, a number from 0 to 4"),
        (("d3", -1), "class -1"),
        (("d3", "road"), "class 'road'"),
        (("d3", 1, "predicted"), "region 'predicted'"),
        (("d3", 1, torch.ones(3, 4)), r"region of shape \(3, 4\): a mask \(16, 20\) or \(2, 16, 20\)"),
    ):
        with pytest.raises(ModelError, match=message):
            secateur.grad_cam(model, x, *arguments)
    tied = zoo.build("tied")
    with pytest.raises(ModelError, match=r"no map .* comes out of unused"):
        secateur.grad_cam(tied, x, "unused", 1)
    with pytest.raises(ModelError, match="do not hang on what aux puts out"):
        secateur.grad_cam(Beside(), x, "aux", 1)


class Beside(nn.Module):
    """A head that the logits do not hang on."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.aux(x)
