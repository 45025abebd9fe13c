"""Attention in convolutional networks: gates over channels, positions and branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, case, image
from torch import Tensor, nn
from zoo import conv_bn

# -- attention in convolutional networks ------------------------------------------------------------------------------


@case("a.0.weight", "b.0.weight", "fc1.weight")
class SqueezeByView(Net):
    def make(self) -> None:
        self.fc1, self.fc2 = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)

    def between(self, y: Tensor) -> Tensor:
        b, c, _, _ = y.size()
        gate = self.fc2(self.fc1(F.adaptive_avg_pool2d(y, 1).view(b, c)).relu()).sigmoid().view(b, c, 1, 1)
        return y * gate.expand_as(y)


@case("b.0.weight", "mlp.1.weight")
class Cbam(Net):
    """Maximum and mean over channels cross them; the shared perceptron does not."""

    def make(self) -> None:
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.where = nn.Conv2d(2, 1, 7, padding=3)

    def between(self, y: Tensor) -> Tensor:
        gate = self.mlp(F.avg_pool2d(y, 8)) + self.mlp(F.max_pool2d(y, 8))
        y = y * gate.sigmoid()[:, :, None, None]
        both = torch.cat([y.max(1, keepdim=True)[0], y.mean(1, keepdim=True)], 1)
        return y * self.where(both).sigmoid()


@case("b.0.weight", pinned={"a.0.weight": "convolution slides"})
class EfficientChannelAttention(Net):
    def make(self) -> None:
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def between(self, y: Tensor) -> Tensor:
        gate = self.conv(y.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return y * gate.sigmoid()


@case("a.0.weight", "one.0.weight", "squeeze.weight")
class SelectiveKernel(Net):
    def make(self) -> None:
        self.one, self.two = conv_bn(8, 8), conv_bn(8, 8, padding=2, dilation=2)
        self.squeeze, self.expand = nn.Linear(8, 6), nn.ModuleList(nn.Linear(6, 8) for _ in range(2))

    def between(self, y: Tensor) -> Tensor:
        maps = torch.stack([self.one(y), self.two(y)], 1)
        hidden = self.squeeze(maps.sum(1).mean((2, 3))).relu()
        weights = torch.stack([layer(hidden) for layer in self.expand], 1).softmax(1)
        return (maps * weights[..., None, None]).sum(1)


@case("a.0.weight", "radix.0.weight", "fc1.weight")
class SplitAttention(Net):
    """ResNeSt with radix 2 in one grouped convolution."""

    def make(self) -> None:
        self.radix = conv_bn(8, 16, groups=2)
        self.fc1, self.fc2 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)

    def between(self, y: Tensor) -> Tensor:
        y = self.radix(y)
        b, c, h, w = y.shape
        parts = y.reshape(b, 2, c // 2, h, w)
        gate = self.fc2(self.fc1(parts.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = gate.view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
        return (parts * gate.reshape(b, 2, c // 2, 1, 1)).sum(1)


@case("a.0.weight", "mid.0.weight", "b.0.weight")
class CoordinateAttention(Net):
    def make(self) -> None:
        self.mid, self.rows, self.columns = conv_bn(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        h, w = y.shape[2:]
        both = torch.cat([y.mean(3, keepdim=True), y.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = torch.split(self.mid(both), [h, w], 2)
        return y * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


@case("a.0.weight", "theta.weight", "g.weight")
class NonLocal(Net):
    """The product divided by the number of positions."""

    def make(self) -> None:
        self.theta, self.phi, self.g = (nn.Conv2d(8, 4, 1) for _ in range(3))
        self.out = nn.Conv2d(4, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        b = len(y)
        theta = self.theta(y).view(b, -1, y.shape[2] * y.shape[3]).permute(0, 2, 1)
        phi = F.max_pool2d(self.phi(y), 2).flatten(2)
        g = F.max_pool2d(self.g(y), 2).flatten(2).permute(0, 2, 1)
        weights = theta @ phi
        z = (weights / weights.size(-1)) @ g
        return y + self.out(z.permute(0, 2, 1).contiguous().view(b, -1, *y.shape[2:]))


@case("b.0.weight", pinned={"a.0.weight": "over this dimension"})
class ChannelAffinity(Net):
    """DANet's channel attention: a Gram matrix, its row maximum, softmax over channels."""

    def make(self) -> None:
        self.gamma = nn.Parameter(torch.zeros(1))

    def between(self, y: Tensor) -> Tensor:
        flat = y.flatten(2)
        energy = flat @ flat.transpose(1, 2)
        energy = energy.max(-1, keepdim=True)[0].expand_as(energy) - energy
        return y + self.gamma * (energy.softmax(-1) @ flat).view_as(y)


@case("a.0.weight", "b.0.weight", "mlp.0.weight")
class GlobalContext(Net):
    """GCNet: one softmax map gathers a context vector; layer norm over the hidden channels."""

    def make(self) -> None:
        self.where = nn.Conv2d(8, 1, 1)
        self.mlp = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        weights = self.where(y).view(b, 1, h * w).softmax(2).unsqueeze(-1)
        context = torch.matmul(y.view(b, c, h * w).unsqueeze(1), weights).view(b, c, 1, 1)
        return y + (self.mlp(context) if b > 1 else context)


@case("a.0.weight", "b.0.weight")
class SimAm(Net):
    def between(self, y: Tensor) -> Tensor:
        d = (y - y.mean((2, 3), keepdim=True)).pow(2)
        n = y.shape[2] * y.shape[3] - 1
        return y * torch.sigmoid(d / (4 * (d.sum((2, 3), keepdim=True) / n + 1e-4)) + 0.5)


@case("b.0.weight")
class Triplet(Net):
    """Attention between channels and rows: channels become rows of a map."""

    def make(self) -> None:
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        t = y.permute(0, 2, 1, 3)
        t = t * self.conv(torch.stack([t.amax(1), t.mean(1)], 1)).sigmoid()
        return t.permute(0, 2, 1, 3)


@case("a.0.weight", "b.0.weight", inputs=image)
class DoubleAttention(Net):
    """A2-Net: gather by one softmax, distribute by another."""

    def make(self) -> None:
        self.maps, self.gather, self.spread = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)
        self.out = nn.Conv2d(6, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        features = torch.bmm(self.maps(y).flatten(2), self.gather(y).flatten(2).softmax(-1).permute(0, 2, 1))
        back = features.matmul(self.spread(y).flatten(2).softmax(1))
        return y + self.out(back.view(y.shape[0], -1, *y.shape[2:]))
