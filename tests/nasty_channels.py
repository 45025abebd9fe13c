"""Channels that are picked, moved, cut, sorted or counted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, case
from torch import Tensor, nn
from zoo import conv_bn


@case("b.0.weight", pinned={"a.0.weight": "sliced"})
class Slimmable(Net):
    """Only the first channels of a weight are used: sizes in the code."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        y = F.conv2d(y[:, :5], self.c.weight[:6, :5], self.c.bias[:6], padding=1)
        return F.pad(y, (0, 0, 0, 0, 1, 1))


@case("b.0.weight", "head.weight:1")
class OptionA(Net):
    """CIFAR's shortcut: every second pixel, zero channels around."""

    def make(self) -> None:
        self.c, self.b = conv_bn(8, 16, stride=2), conv_bn(16, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.c(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


@case("b.0.weight")
class ZerosBehind(Net):
    """The shortcut is padded by the difference of two widths."""

    def make(self) -> None:
        self.c, self.b = conv_bn(8, 12), conv_bn(12, 8)

    def between(self, y: Tensor) -> Tensor:
        z = self.c(y)
        zeros = torch.zeros(y.shape[0], z.shape[1] - y.shape[1], *y.shape[2:], dtype=y.dtype, device=y.device)
        return z + torch.cat([y, zeros], 1)


@case("b.0.weight", pinned={"a.0.weight": "flip"})
class Flipped(Net):
    def between(self, y: Tensor) -> Tensor:
        return y + y.flip(1)


@case("b.0.weight", pinned={"a.0.weight": "roll"})
class RolledChannels(Net):
    def between(self, y: Tensor) -> Tensor:
        return y + y.roll(1, 1)


@case("a.0.weight", "b.0.weight")
class RolledAndFlippedSpace(Net):
    def between(self, y: Tensor) -> Tensor:
        return y + y.roll((1, -1), (2, 3)).flip([3]) + torch.rot90(y, 1, [2, 3])


@case("b.0.weight", pinned={"a.0.weight": "topk"})
class TopChannels(Net):
    """The three strongest channels of every sample."""

    def make(self) -> None:
        self.b = conv_bn(3, 8)

    def between(self, y: Tensor) -> Tensor:
        best = y.mean((2, 3)).topk(3, dim=1).indices
        return y.gather(1, best[..., None, None].expand(-1, -1, *y.shape[2:]))


@case("b.0.weight")
class ArgmaxMask(Net):
    """Only the strongest channel of every pixel is kept."""

    def between(self, y: Tensor) -> Tensor:
        return y * F.one_hot(y.argmax(1), 8).permute(0, 3, 1, 2)


@case("b.0.weight", pinned={"a.0.weight": "sort"})
class Sorted(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.sort(1)[0]


@case("b.0.weight", pinned={"a.0.weight": "cumsum"})
class Accumulated(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.cumsum(1)


@case("b.0.weight", pinned={"a.0.weight": "softmax"})
class SoftmaxOverChannels(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.softmax(1)


@case("a.0.weight", "b.0.weight")
class UnitLength(Net):
    def between(self, y: Tensor) -> Tensor:
        return F.normalize(y, dim=1) * y.norm(p=1, dim=1, keepdim=True) / (y.pow(2).sum(1, keepdim=True) + 1.0).sqrt()


@case("a.0.weight", "c.0.weight")
class CosineMap(Net):
    """Similarity of two maps as a spatial gate."""

    def make(self) -> None:
        self.c = conv_bn(8, 8)

    def between(self, y: Tensor) -> Tensor:
        z = self.c(y)
        return z * F.cosine_similarity(y, z, dim=1).unsqueeze(1)


@case("a.0.weight", "c.0.weight", "head.1.weight")
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = conv_bn(3, 8), conv_bn(3, 6)
        self.mix, self.head = nn.Bilinear(8, 6, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.a(x).mean((2, 3)), self.c(x).mean((2, 3))))


@case("a.0.weight")
class OuterProduct(nn.Module):
    """Bilinear pooling, flattened into a linear layer: an input of it belongs to a channel of either map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = conv_bn(3, 8), conv_bn(3, 6), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        gram = self.a(x).flatten(2) @ self.c(x).flatten(2).mT
        return self.head(gram.flatten(1))


@case(refused="merged|no rule|fixed")
class GramMatrix(nn.Module):
    """One map with itself: both factors shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv_bn(3, 8), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2)
        return self.head(torch.bmm(y, y.transpose(1, 2)).view(len(x), -1))


@case("b.0.weight", pinned={"a.0.weight": "select"})
class LoopOverChannels(Net):
    def make(self) -> None:
        self.b = conv_bn(1, 8)

    def between(self, y: Tensor) -> Tensor:
        return sum(y[:, i : i + 1] * (i + 1) for i in range(y.shape[1])) + y[:, 0:1] + y[:, 1].unsqueeze(1)


@case("b.0.weight", pinned={"a.0.weight": "fixed"})
class SumOfSlices(Net):
    """A sum over channels as a loop over equal slices."""

    def make(self) -> None:
        self.b = conv_bn(1, 8)

    def between(self, y: Tensor) -> Tensor:
        return torch.sum(torch.stack([part for part in y.split(1, 1)], 0), 0)


@case("b.0.weight", pinned={"a.0.weight": "fixed size"})
class Numbered(Net):
    """Every channel is multiplied by its number, made from the width."""

    def between(self, y: Tensor) -> Tensor:
        return y * torch.linspace(0, 1, y.shape[1], device=y.device, dtype=y.dtype)[:, None, None]


@case("a.0.weight", "b.0.weight")
class MeanSubtracted(Net):
    """A difference of sums over channels."""

    def between(self, y: Tensor) -> Tensor:
        return y * y.sum(1, keepdim=True) - y * y.square().sum(1, keepdim=True).sqrt()


@case("b.0.weight", pinned={"a.0.weight": "mean over"})
class Centred(Net):
    def between(self, y: Tensor) -> Tensor:
        return y - y.mean(1, keepdim=True)


@case("a.0.weight", "b.0.weight")
class Unpooled(Net):
    def between(self, y: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(y, 2, return_indices=True)
        flat = torch.zeros(*y.shape[:2], y.shape[2] * y.shape[3], dtype=y.dtype, device=y.device)
        return flat.scatter(2, places.flatten(2), pooled.flatten(2)).view_as(y)


@case("a.0.weight", "b.0.weight")
class GridSampled(Net):
    def make(self) -> None:
        self.offset = nn.Conv2d(8, 2, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, 8, dtype=y.dtype, device=y.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        return F.grid_sample(y, grid + 0.1 * self.offset(y).permute(0, 2, 3, 1).tanh(), align_corners=False)


@case("localise.0.weight", "a.0.weight")
class SpatialTransformer(Net):
    def make(self) -> None:
        self.localise = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 6))

    def between(self, y: Tensor) -> Tensor:
        theta = self.localise(y.mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(y, F.affine_grid(theta, list(y.size()), align_corners=False), align_corners=False)


@case("a.0.weight", "b.0.weight")
class BlurPool(Net):
    def make(self) -> None:
        self.register_buffer("filter", torch.tensor([[1.0, 2.0], [2.0, 4.0]]).repeat(8, 1, 1, 1), persistent=False)

    def between(self, y: Tensor) -> Tensor:
        return F.conv2d(F.pad(y, (0, 1, 0, 1), mode="replicate"), self.filter.to(y), stride=1, groups=y.shape[1])


@case("a.0.weight", "c.weight")
class ShiftedChannels(Net):
    """Temporal shift: equal quarters of the channels move by one pixel each."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        up, down, left, right = y.chunk(4, 1)
        moved = [up.roll(1, 2), down.roll(-1, 2), left.roll(1, 3), right.roll(-1, 3)]
        return self.c(torch.cat(moved, 1))


@case("a.0.weight", "one.weight", "two.weight", "b.0.weight")
class Octave(Net):
    """Two resolutions that exchange."""

    def make(self) -> None:
        self.one, self.two, self.cross = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 1)
        self.b = conv_bn(10, 8)

    def between(self, y: Tensor) -> Tensor:
        low = self.two(F.avg_pool2d(y, 2))
        high = self.one(y) + F.interpolate(self.cross(low), scale_factor=2)
        return torch.cat([high, F.interpolate(low, size=high.shape[-2:], mode="bicubic")], 1)


@case("a.0.weight", "rows.weight", "b.0.weight")
class Separable(Net):
    def make(self) -> None:
        self.rows, self.columns = nn.Conv2d(8, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 8, (5, 1), padding="same")

    def between(self, y: Tensor) -> Tensor:
        return self.columns(self.rows(y))


@case("a.0.weight", "b.0.weight")
class SharedDepthwise(Net):
    """One depthwise weight at three rates."""

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))

    def between(self, y: Tensor) -> Tensor:
        rates = (F.conv2d(y, self.weight, padding=r, dilation=r, groups=len(self.weight)) for r in (1, 2, 3))
        return sum(rates)


@case("b.0.weight", pinned={"a.0.weight": "code"})
class ParallelByGroups(Net):
    """Two copies of the channels through a convolution of two groups, whose number is that of its weights."""

    def make(self) -> None:
        self.pair = nn.Conv2d(16, 16, 1, groups=16)

    def between(self, y: Tensor) -> Tensor:
        first, second = self.pair(y.repeat(1, 2, 1, 1)).view(y.shape[0], 2, 8, *y.shape[2:]).unbind(1)
        return first * second.sigmoid()


@case("a.0.weight", "pair.weight")
class CopiedIntoGroups(Net):
    def make(self) -> None:
        self.pair = nn.Conv2d(16, 16, 3, padding=1, groups=2)

    def between(self, y: Tensor) -> Tensor:
        first, second = self.pair(torch.cat([y, y], 1)).chunk(2, 1)
        return first * second.sigmoid()
