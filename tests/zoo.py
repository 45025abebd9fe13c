"""Small networks, each with one structure that pruning gets wrong easily. `randomise` makes every channel of them
show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random affine parameters and running statistics, so that a wrong cut can't hide behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                if name.endswith("bias") or name.endswith("running_mean"):
                    tensor.sub_(1.0)
    return model


def conv_bn(i: int, o: int, k: int = 3, **options) -> nn.Sequential:
    options.setdefault("padding", k // 2)
    return nn.Sequential(nn.Conv2d(i, o, k, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


class Flat(nn.Module):
    """Flattened maps before linear layers: every channel feeds H W inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 6, stride=2)
        self.fc1, self.fc2 = nn.Linear(6 * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(self.b(self.a(x)), 4).flatten(1)
        return self.fc2(F.dropout(F.relu(self.fc1(y)), 0.2, self.training))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.down = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            if stride != 1 or i != o
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


class Bottleneck(nn.Module):
    def __init__(self, i: int, m: int, o: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, m, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.bn2 = nn.Conv2d(m, m, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(m)
        self.conv3, self.bn3 = nn.Conv2d(m, o, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)  # one module, used three times
        self.down = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride != 1 or i != o else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, kind: str = "basic") -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        if kind == "basic":
            self.blocks = nn.Sequential(Basic(8, 8), Basic(8, 16, 2), Basic(16, 16))
        else:
            groups = 4 if kind == "next" else 1
            self.blocks = nn.Sequential(
                Bottleneck(8, 8, 16, groups=groups),
                Bottleneck(16, 8, 16, groups=groups),
                Bottleneck(16, 16, 24, 2, groups),
            )
        self.fc = nn.Linear(16 if kind == "basic" else 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.pool(self.stem(x))), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 12)
        self.reduce, self.expand = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return self.head(y * gate.expand_as(y))


class Inverted(nn.Module):
    """Depthwise convolutions, one with a channel multiplier of 2; residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.expand, self.depth = conv_bn(8, 16, 1), conv_bn(16, 16, 3, groups=16)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.wider = conv_bn(8, 16, 3, groups=8)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(self.wider(x))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.g1, self.g2 = nn.Conv2d(12, 24, 1, groups=3, bias=False), nn.Conv2d(24, 12, 1, groups=3)
        self.bn = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn(self.g1(x)))
        n, c, h, w = y.shape
        y = y.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.cat([x, self.g2(y)], 1))


class ChunkShuffle(nn.Module):
    """ShuffleNet v2: half of the channels pass, half are worked on, then they are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.work = conv_bn(3, 12), conv_bn(6, 6)
        self.head = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y = torch.cat([a, self.work(b)], 1)
        n, c, h, w = y.shape
        return self.head(y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


class Dense(nn.Module):
    """DenseNet: concatenations of concatenations, normalised before each convolution."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(layers))
        self.last = nn.BatchNorm2d(8 + 4 * layers)
        self.head = nn.Conv2d(8 + 4 * layers, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.last(x)))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 4), conv_bn(4, 6), conv_bn(10, 8)
        self.head = nn.Conv2d(4 + 6 + 10 + 8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        ab = torch.cat([a, b], 1)
        return self.head(torch.cat([torch.cat([b, self.c(ab)], 1), torch.cat([a, ab], 1)], 1))


class Twice(nn.Module):
    """cat([x, x]) and a module that is used on two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared, self.b = conv_bn(3, 8), conv_bn(8, 8), conv_bn(16, 6)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.shared(self.shared(y))
        z = self.b(torch.cat([y, y], 1))
        return self.head(torch.cat([z, z], 1))


class MiniUNet(nn.Module):
    """Skips by concatenation, transposed convolution, odd sizes resized to the skip's."""

    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up2, self.u2 = nn.ConvTranspose2d(16, 10, 2, 2), conv_bn(22, 12)
        self.u1, self.head = conv_bn(20, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        y = F.interpolate(self.up2(c), size=b.shape[2:], mode="nearest")
        y = self.u2(torch.cat([b, y], 1))
        y = F.interpolate(y, size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.u1(torch.cat([y, a], 1)))


class MiniSegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2, self.mid = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 12)
        self.d2, self.d1, self.head = conv_bn(12, 8), conv_bn(8, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        p, i = F.max_pool2d(a, 2, return_indices=True)
        b = self.e2(p)
        q, j = F.max_pool2d(b, 2, return_indices=True)
        y = self.d2(F.max_unpool2d(self.mid(q), j, 2, output_size=b.shape[2:]))
        return self.head(self.d1(F.max_unpool2d(y, i, 2, output_size=a.shape[2:])))


class Pyramid(nn.Module):
    """Pyramid pooling, auxiliary head, a dict of outputs that differ between train and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk = conv_bn(3, 8), conv_bn(8, 12, stride=2)
        self.bins = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(b), *conv_bn(12, 6, 1)) for b in (1, 2, 3))
        self.final, self.head = conv_bn(12 + 18, 10), nn.Conv2d(10, 5, 1)
        self.aux = nn.Sequential(*conv_bn(12, 6), nn.Dropout2d(0.3), nn.Conv2d(6, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f = self.trunk(self.stem(x))
        parts = [F.interpolate(b(f), size=f.shape[2:], mode="bilinear", align_corners=True) for b in self.bins]
        out = {"out": self.head(self.final(torch.cat([*parts, f], 1)))}
        if self.training:
            out["aux"] = self.aux(f)
        return out


class Attention(nn.Module):
    """One-channel spatial attention must not glue all channels together; channel attention with a literal split is
    pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 12)
        self.where = nn.Conv2d(12, 1, 7, padding=3)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.head(y * torch.sigmoid(self.where(y)))


class Baked(nn.Module):
    """Sizes written in the code: those channels are pinned, the others are pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y = y.reshape(y.shape[0], 12, -1).reshape(y.shape)
        return self.head(self.c(torch.cat(torch.split(y, [5, 7], 1)[::-1], 1)))


class Unknown(nn.Module):
    """An operator without a rule over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y = torch.linalg.matrix_exp(0.01 * y @ y.mT) @ y
        return self.head(self.c(y))


class Norms(nn.Module):
    """Group norm by whole groups, layer norm pinned, PReLU per channel, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gn = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.b, self.act = nn.Conv2d(12, 16, 3, padding=1), nn.PReLU(16)
        self.shuffle = nn.PixelShuffle(2)
        self.c, self.ln = nn.Conv2d(4, 6, 1), nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.gn(self.a(x)))
        y = self.c(self.shuffle(self.act(self.b(y))))
        return self.head(self.ln(y.permute(0, 2, 3, 1)))


class Written(nn.Module):
    """Writes into slices of a tensor made on the fly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(3, 6)
        self.c, self.head = conv_bn(14, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        y[:, : a.shape[1]] = a
        y[:, a.shape[1] :] = b
        return self.head(self.c(y))


class Tied(nn.Module):
    """One weight under two names, an unused layer, a value read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.unused = nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.b(F.relu(self.a(y)))
        if float(x.abs().mean()) < 0:
            y = -y
        return self.head(F.silu(y))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain, "flat": Flat, "resnet_basic": ResNet, "resnet_bottleneck": lambda: ResNet("bottleneck"),
    "resnext": lambda: ResNet("next"), "squeeze_excite": SqueezeExcite, "inverted": Inverted, "shuffle": Shuffle,
    "chunk_shuffle": ChunkShuffle, "dense": Dense, "nested": Nested, "twice": Twice, "unet": MiniUNet,
    "segnet": MiniSegNet, "pyramid": Pyramid, "attention": Attention, "baked": Baked,
    "unknown": Unknown, "norms": Norms, "written": Written,
    "tied": Tied,
}  # fmt: skip


def build(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo with weights that show, in eval mode."""
    torch.manual_seed(seed)
    return randomise(NETWORKS[name](), seed).eval()


def example(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def silenced_by_hand(model: nn.Module, plan: secateur.Plan) -> nn.Module:
    """The definition of the contract, independent of the library's own silencing."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.removed.items():
            for dim, indices in dims.items():
                for index in indices:
                    tensors[name].select(dim, index).zero_()
    return model
