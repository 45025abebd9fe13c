"""Whole networks in miniature: pyramids, detectors, decoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, case
from torch import Tensor, nn
from zoo import conv_bn


@case("branch3.0.weight", "b.0.weight")
class RepVgg(Net):
    """Train form: 3x3, 1x1 and identity, each with its own normalisation."""

    def make(self) -> None:
        self.branch3 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.branch1 = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.identity = nn.BatchNorm2d(8)

    def between(self, y: Tensor) -> Tensor:
        return F.relu(self.branch3(y) + self.branch1(y) + self.identity(y))


@case("branch3.0.weight", "b.0.weight")
class RepVggFused(RepVgg):
    """The kernel is fused in forward, in eval mode."""

    def fused(self, branch: nn.Sequential) -> tuple[Tensor, Tensor]:
        conv, norm = branch
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return conv.weight * scale.reshape(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def between(self, y: Tensor) -> Tensor:
        if self.training:
            return F.relu(self.branch3(y) + self.branch1(y))
        (k3, b3), (k1, b1) = self.fused(self.branch3), self.fused(self.branch1)
        return F.relu(F.conv2d(y, k3 + F.pad(k1, [1, 1, 1, 1]), b3 + b1, padding=1))


@case("a.0.weight", "b.0.weight", "side.0.weight")
class DeepSupervision(Net):
    def make(self) -> None:
        self.side = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(6, 1, 1)])
        self.fuse = nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.a(x)
        side = self.side[1](self.side[0](F.max_pool2d(y, 2)))
        main = self.head(self.b(y))
        side = F.interpolate(side, size=x.shape[-2:], mode="bilinear")
        outs = [torch.cat([side, main], 1)]
        return [self.fuse(outs[0]), *outs, side] if self.training else [self.fuse(outs[0])]


@case("stem.0.weight", "layers.0.0.weight", "layers.2.0.weight")
class DenseWithList(nn.Module):
    """The list of maps grows; every layer concatenates it anew, through a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.layers = nn.ModuleList(nn.Sequential(*conv_bn(6 + 4 * i, 8, 1), *conv_bn(8, 4)) for i in range(3))
        self.transition, self.head = conv_bn(18, 7, 1), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.head(F.avg_pool2d(self.transition(torch.cat(maps, 1)), 8).flatten(1))


@case("high.0.weight", "low.0.weight", "down.0.weight", "b.0.weight")
class HighResolution(Net):
    """HRNet: two resolutions fused twice."""

    def make(self) -> None:
        self.high, self.low = conv_bn(8, 6), conv_bn(8, 10, stride=2)
        self.up, self.down, self.b = conv_bn(10, 6, 1), conv_bn(6, 10, stride=2), conv_bn(16, 8)

    def between(self, y: Tensor) -> Tensor:
        high, low = self.high(y), self.low(y)
        for _ in range(2):
            low, high = low + self.down(high), high + F.interpolate(self.up(low), scale_factor=2, mode="nearest")
            high, low = F.relu(high), F.relu(low)
        return torch.cat([high, F.interpolate(low, size=high.shape[2:], mode="bilinear", align_corners=False)], 1)


@case("c0.0.weight", "c2.0.weight", "n01.0.weight")
class NestedUnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1, self.c2 = conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.n01, self.n11, self.n02 = conv_bn(10, 4), conv_bn(14, 6), conv_bn(14, 4)
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        def up(t: Tensor) -> Tensor:
            return F.interpolate(t, scale_factor=2)

        x0 = self.c0(x)
        x1 = self.c1(F.max_pool2d(x0, 2))
        x01 = self.n01(torch.cat([x0, up(x1)], 1))
        x11 = self.n11(torch.cat([x1, up(self.c2(F.max_pool2d(x1, 2)))], 1))
        x02 = self.n02(torch.cat([x0, x01, up(x11)], 1))
        return [head(t) for head, t in zip(self.heads, (x01, x02), strict=True)]


@case("lateral.0.weight", "c1.0.weight", "c2.0.weight", "tower.0.0.weight")
class Detector(nn.Module):
    """A pyramid with learnt fusion, one head on all levels, scales per level, maps flattened into boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv_bn(3, 8), conv_bn(8, 12, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)])
        self.fusion, self.scales = (
            nn.Parameter(torch.ones(2)),
            nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in "ab"),
        )
        self.tower = nn.Sequential(conv_bn(6, 6), nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(6, 3 * 5, 3, padding=1), nn.Conv2d(6, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.c1(x)
        levels = [lateral(t) for lateral, t in zip(self.lateral, (one, self.c2(one)), strict=True)]
        weight = self.fusion.relu() / (self.fusion.relu().sum() + 1e-4)
        levels[0] = weight[0] * levels[0] + weight[1] * F.interpolate(levels[1], size=levels[0].shape[-2:])
        classes, boxes = [], []
        for level, scale in zip(levels, self.scales, strict=True):
            t = self.tower(level)
            b, _, h, w = t.shape
            classes.append(self.classes(t).view(b, 3, 5, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, 5))
            boxes.append((self.boxes(t) * scale).exp().permute(0, 2, 3, 1).contiguous().view(b, -1, 4))
        return torch.cat(classes, 1).softmax(-1), torch.cat(boxes, 1)


@case("c1.weight", "c2.weight")
class BidirectionalPyramid(nn.Module):
    """BiFPN: stacked levels times the softmax of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.w = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.Parameter(torch.randn(2))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([self.c1(x), F.interpolate(self.c2(x), scale_factor=2)], -1)
        return self.head((maps * self.w.softmax(0)).sum(-1))


@case("trunk.0.weight")
class YoloDecode(nn.Module):
    """Grid and anchor buffers, filled when first needed; boxes decoded by slices of the head's own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = conv_bn(3, 8), nn.Conv2d(8, 14, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.0]]).view(1, 2, 1, 1, 2))
        self.grid = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        t = self.head(self.trunk(x))
        b, _, h, w = t.shape
        t = t.view(b, 2, 7, h, w).permute(0, 1, 3, 4, 2).contiguous()
        if self.training:
            return t
        if self.grid.shape[2:4] != t.shape[2:4]:
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            self.grid = torch.stack((xs, ys), 2).view(1, 1, h, w, 2).to(t)
        y = t.sigmoid()
        y[..., 0:2] = (y[..., 0:2] * 2 - 0.5 + self.grid) * 2
        y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * self.anchors
        return y.view(b, -1, 7)


@case("trunk.0.weight", "heads.hm.0.weight", "heads.wh.0.weight")
class CenterHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = conv_bn(3, 8)
        self.heads = nn.ModuleDict(
            {
                k: nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, n, 1))
                for k, n in (("hm", 3), ("wh", 2))
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.trunk(x)
        out = {name: head(y) for name, head in self.heads.items()}
        out["hm"] = out["hm"].sigmoid_().clamp(1e-4, 1 - 1e-4)
        peaks = (F.max_pool2d(out["hm"], 3, 1, 1) == out["hm"]).to(y.dtype)
        scores, places = torch.topk((out["hm"] * peaks).flatten(1), 4)
        places = places % (y.shape[2] * y.shape[3])
        return {**out, "scores": scores, "sizes": out["wh"].flatten(2).gather(2, places[:, None].expand(-1, 2, -1))}


@case("stem.0.weight", "rois.0.weight")
class CropsByValue(nn.Module):
    """Regions cut out by slices whose places are read from a tensor, pooled to one size, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.rois = nn.Sequential(nn.Linear(8 * 4, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        boxes = [(0, 1, 5, 6), (2, 0, 8, 4)]
        crops = [
            F.adaptive_max_pool2d(y[i % len(y), :, top:bottom, left:right], 2)
            for i, (left, top, right, bottom) in enumerate(boxes)
        ]
        return self.rois(torch.stack(crops).flatten(1))


@case("a.0.weight", "project.0.weight", "b.0.weight")
class Aspp(Net):
    def make(self) -> None:
        self.rates = nn.ModuleList([conv_bn(8, 4, 1), *(conv_bn(8, 4, padding=r, dilation=r) for r in (2, 3))])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.project = conv_bn(16, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        maps = [rate(y) for rate in self.rates] + [self.pool(y).expand(-1, -1, *y.shape[-2:])]
        return self.project(torch.cat(maps, dim=1))


@case("pixels.0.weight", "b.0.weight", "key.weight")
class ObjectContext(Net):
    """OCR: soft regions gather objects, pixels attend to them; an auxiliary output."""

    def make(self) -> None:
        self.aux, self.pixels = nn.Conv2d(8, 3, 1), conv_bn(8, 6)
        self.query, self.key, self.value = nn.Conv2d(6, 5, 1), nn.Conv1d(6, 5, 1), nn.Conv1d(6, 6, 1)
        self.b = conv_bn(12, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        regions, t = self.aux(y), self.pixels(y)
        b, _, h, w = t.shape
        objects = torch.matmul(regions.flatten(2).softmax(2), t.flatten(2).permute(0, 2, 1)).permute(0, 2, 1)
        scores = torch.matmul(self.query(t).flatten(2).permute(0, 2, 1), self.key(objects))
        context = torch.matmul(scores.softmax(-1), self.value(objects).permute(0, 2, 1))
        context = context.permute(0, 2, 1).contiguous().view(b, -1, h, w)
        return self.head(self.b(torch.cat([context, t], 1))), regions
