"""Odd ways of building and keeping a network: masks, adapters, plain tensors, caches, other tensors than dense ones."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
import torch.nn.functional as F
from nasty import Net, Tokens, case, drawn, image, tokens, words
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from zoo import conv_bn


@case("a.0.weight", "c.weight_orig", "b.0.weight")
class MaskedByTorch(Net):
    """torch.nn.utils.prune: an original, a mask, a weight made before every forward pass."""

    def make(self) -> None:
        self.c = prune.random_unstructured(nn.Conv2d(8, 6, 3, padding=1), "weight", 0.3)
        self.d = nn.Conv2d(6, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("a.0.weight", "lora_a", "c.weight", "b.0.weight")
class Adapted(Net):
    """LoRA on a frozen 1x1 convolution, added to its weight."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 6, 1).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(6, 4))
        self.d = nn.Conv2d(6, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        weight = self.c.weight + 0.5 * (self.lora_b @ self.lora_a)[:, :, None, None]
        return self.d(F.conv2d(y, weight, self.c.bias))


@case("a.weight", "down.weight", inputs=tokens)
class AdaptedBeside(Tokens):
    def make(self) -> None:
        self.down, self.up, self.c = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        return (self.c(y) + 2.0 * self.up(self.down(y))).relu()


@case("b.0.weight", pinned={"a.0.weight": "fixed"})
class PlainTensorAttribute(Net):
    """One number per channel that is no buffer."""

    def make(self) -> None:
        self.scale = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)

    def between(self, y: Tensor) -> Tensor:
        return y * self.scale.to(y)[:, None, None]


@case("b.0.weight", pinned={"a.0.weight": "fixed"})
class HiddenModules(Net):
    """Layers in a plain list, known to nobody."""

    def make(self) -> None:
        self.hidden = [nn.Conv2d(8, 8, 1).double()]

    def between(self, y: Tensor) -> Tensor:
        return self.hidden[0](y)


GRIDS: dict[tuple[int, int], Tensor] = {}


@case("a.0.weight", "b.0.weight")
class CachedOutside(Net):
    """A table of the program's own, filled when a size is met first: tracing must not leave anything useless there."""

    def between(self, y: Tensor) -> Tensor:
        size = (y.shape[2], y.shape[3])
        if size not in GRIDS:
            GRIDS[size] = torch.linspace(0, 1, size[0] * size[1], dtype=y.dtype, device=y.device).view(size)
        return y * GRIDS[size]


@case("a.0.weight", "b.0.weight")
class CachedInClass(Net):
    """The same in an attribute of the class."""

    grids: dict[int, Tensor] = {}  # noqa: RUF012

    def between(self, y: Tensor) -> Tensor:
        if y.shape[2] not in self.grids:
            self.grids[y.shape[2]] = torch.linspace(0, 1, y.shape[2], dtype=y.dtype, device=y.device)
        return y * self.grids[y.shape[2]]


@functools.lru_cache
def ramp(size: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0, 1, size, dtype=dtype)


@case("a.0.weight", "b.0.weight")
class CachedFunction(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * ramp(y.shape[-1], y.dtype).to(y.device)


@functools.cache
def ramp_beside(size: int, like: torch.dtype, device: str) -> Tensor:
    return torch.linspace(0, 1, size, dtype=like, device=device)


@case("a.0.weight", "b.0.weight")
class CachedByDevice(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * ramp_beside(y.shape[-1], y.dtype, str(y.device))


@case("a.0.weight", "b.0.weight")
class RegistersLater(Net):
    """A layer that is made in the first forward pass."""

    def make(self) -> None:
        self.c: Any = None
        self.between(torch.zeros(1, 8, 4, 4))

    def between(self, y: Tensor) -> Tensor:
        if self.c is None:
            self.c = nn.Conv2d(y.shape[1], 8, 1)
        return self.c(y)


@case("a.0.weight", "c.weight", "b.0.weight")
class Lazy(Net):
    """Lazy layers, run once."""

    def make(self) -> None:
        self.c = nn.Sequential(nn.LazyConv2d(6, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyConv2d(8, 1))
        self.c(torch.zeros(1, 8, 4, 4))
        self.c, self.d = self.c[0], self.c[1:]

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("a.0.weight", "b.0.weight")
def Symbolic() -> nn.Module:
    """Not its own class any more: traced by torch.fx."""
    return fx.symbolic_trace(Net())


@case(refused="no rule for _sparse_addmm", inputs=lambda s, b: drawn(s, 5, 6))
class SparseAdjacency(nn.Module):
    """A graph convolution by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        adjacency = (torch.rand(5, 5) > 0.5).double() + torch.eye(5).double()
        self.register_buffer("adjacency", adjacency.to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sparse.mm(self.adjacency, self.w(x)).relu()
        return self.head(torch.sparse.mm(self.adjacency, self.v(h)))


@case("a.0.weight", "b.0.weight")
class NoGradient(Net):
    """Runs under no_grad only: a parameter is written into, a map is turned into numpy."""

    def make(self) -> None:
        self.counter = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.counter.add_(1)
        out = super().forward(x)
        return out + torch.from_numpy(out.cpu().numpy()).to(out)


@case("a.0.weight", "b.0.weight")
class NumpyBehind(Net):
    """Detections as numpy arrays in eval mode; runs with gradients only if training."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return out if self.training else {"out": out, "array": out.detach().cpu().numpy(), "number": 3.5}


@case("a.0.weight", "b.0.weight")
class RandomPath(Net):
    """Python's own random numbers choose among paths that differ by a factor."""

    def make(self) -> None:
        self.random = random.Random(0)

    def between(self, y: Tensor) -> Tensor:
        return y if self.random.random() < 2 else -y


@case("a.0.weight", "b.0.weight", inputs=words)
class CharacterConvolution(nn.Module):
    """Text by convolutions over embeddings; the maxima over time are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.a, self.b = (nn.Sequential(nn.Conv1d(8, 6, k, padding=1), nn.ReLU()) for k in (2, 3))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x).transpose(1, 2)
        return self.head(torch.cat([self.a(y).amax(-1), self.b(y).amax(-1)], 1))


@case("up.weight", inputs=words)
class RescaledEmbedding(nn.Module):
    """max_norm: rows are rescaled in place by their length when they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.words(x.clone())).relu())


@case("a.0.weight", "b.0.weight")
class WeightData(Net):
    """The weight is read through `.data`, and rescaled in place before use."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.c.weight.data * 0.5, self.c.bias)


@case("a.0.weight", "b.0.weight", "c.weight")
class ClippedWeights(Net):
    """WGAN: weights are clipped in place whenever forward runs."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.c.weight.clamp_(-0.2, 0.2)
        return self.c(y)


@case("a.0.weight", "b.0.weight")
class RunningMean(Net):
    """A buffer of its own follows the mean of the maps when training, by assignment."""

    def make(self) -> None:
        self.register_buffer("mean", torch.zeros(8))

    def between(self, y: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.mean((0, 2, 3)).detach()
        return y - self.mean.view(1, -1, 1, 1)


@case("a.0.weight", "b.0.weight")
class RunningMeanInPlace(Net):
    def make(self) -> None:
        self.register_buffer("mean", torch.zeros(8))

    def between(self, y: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        return y - self.mean.view(1, -1, 1, 1)


@case("a.0.weight", "b.0.weight")
class ActNorm(Net):
    """Glow: scale and shift are set from the first batch in train mode."""

    def make(self) -> None:
        self.scale, self.shift = nn.Parameter(torch.ones(1, 8, 1, 1)), nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.register_buffer("ready", torch.tensor(False))

    def between(self, y: Tensor) -> Tensor:
        if self.training and not self.ready:
            with torch.no_grad():
                self.shift.copy_(-y.mean((0, 2, 3), keepdim=True))
                self.scale.copy_(1 / (y.std((0, 2, 3), keepdim=True) + 0.1))
                self.ready.fill_(True)
        return (y + self.shift) * self.scale


@case("b.0.weight", pinned={"a.0.weight": "unequal"})
class PartialConvolution(Net):
    """FasterNet: a convolution on the first quarter of the channels."""

    def make(self) -> None:
        self.part = 2
        self.c = nn.Conv2d(2, 2, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        first, rest = torch.split(y, [self.part, y.shape[1] - self.part], 1)
        return torch.cat([self.c(first), rest], 1)


@case("a.0.weight", "cheap.0.weight", "b.0.weight")
class Ghost(Net):
    """GhostNet: primary maps and cheap ones beside, cut to the number of outputs."""

    def make(self) -> None:
        self.primary, self.cheap, self.width = conv_bn(8, 4, 1), conv_bn(4, 4, groups=4), 8

    def between(self, y: Tensor) -> Tensor:
        y = self.primary(y)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.width]


@case("a.0.weight", "convs.0.weight", "b.0.weight")
class Res2Net(Net):
    """Parts of a literal width, each convolved with the last added."""

    def make(self) -> None:
        self.width, self.wide = 4, conv_bn(8, 16, 1)
        self.convs, self.b = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)), conv_bn(16, 8)

    def between(self, y: Tensor) -> Tensor:
        parts = torch.split(self.wide(y), self.width, 1)
        outs = [parts[0]]
        for part, conv in zip(parts[1:], self.convs, strict=True):
            outs.append(conv(part + outs[-1] if len(outs) > 1 else part))
        return torch.cat(outs, 1)


@case("a.0.weight", "m.0.0.weight", "b.0.weight")
class CrossStage(Net):
    """YOLOv8's C2f: one half passes, the other runs through blocks whose outputs are all kept."""

    def make(self) -> None:
        self.c, self.cv1 = 4, conv_bn(8, 8, 1)
        self.m, self.cv2 = nn.ModuleList(conv_bn(4, 4) for _ in range(2)), conv_bn(16, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        parts = list(self.cv1(y).split((self.c, self.c), 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


@case("b.0.weight")
class Haar(Net):
    """A fixed wavelet by grouped convolution with a repeated buffer, whose filters all channels share: they stay."""

    def make(self) -> None:
        filters = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2) / 2
        self.register_buffer("filters", filters)
        self.b = conv_bn(32, 8)

    def between(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.filters.repeat(y.shape[1], 1, 1, 1), stride=2, groups=y.shape[1])


@case("a.0.weight", "b.0.weight")
class GumbelGate(Net):
    """A hard gate per channel and sample, straight through; noise has the channels' shape."""

    def make(self) -> None:
        self.gate = nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        logits = self.gate(y.mean((2, 3)))
        soft = logits.sigmoid()
        return y * ((logits > 0).to(y) - soft.detach() + soft)[..., None, None]


@case("a.0.weight", "b.0.weight")
class TwoDevices(Net):
    """Everything is moved to where its input is."""

    def between(self, y: Tensor) -> Tensor:
        device = torch.device("cpu") if y.device.type == "cpu" else y.device
        mask = torch.ones(y.shape[-2:], device=device, dtype=torch.bool).triu()
        return y.to(device, copy=True).masked_fill_(~mask, 0.0).contiguous(memory_format=torch.channels_last)


@case(
    "a.0.weight",
    "b.0.weight",
    inputs=lambda s, b: (image(s, b), [8, 6], "same", None, torch.tensor([True, False, True])[:b]),
)
class PlainArguments(Net):
    """Numbers, a string, None and a mask of samples beside the image."""

    def forward(self, x: Tensor, size: list[int], how: str, nothing: None, chosen: Tensor) -> Tensor:  # type: ignore[override]
        assert how == "same" and nothing is None
        x = F.interpolate(x, size=size)
        return super().forward(torch.where(chosen[:, None, None, None], x, -x))


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: image(s, b).float(), float64=False)
class BrainFloat(Net):
    """A middle in bfloat16: rounding differs with the widths."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        return self.c(y).to(torch.bfloat16).relu().to(y.dtype)


@case("a.0.weight", "c.0.weight", "b.0.weight")
class Ensemble(Net):
    """A list of whole branches, averaged; their number is a length."""

    def make(self) -> None:
        self.c = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)])

    def between(self, y: Tensor) -> Tensor:
        return torch.stack([layer(y) for layer in self.c]).mean(0) / len(self.c)


@case("a.0.weight", "b.0.weight")
class WeightPenalty(Net):
    """Sums over all weights come out beside the answer: silent ones add nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penalty = sum(p.square().sum() for m in (self.a, self.b) for p in m.parameters())
        return super().forward(x), penalty


@case("b.0.weight", pinned={"a.0.weight": "mean"})
class ActivationPenalty(Net):
    """The mean of all activations comes out: it depends on how many there are."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return self.head(self.b(y)), y.abs().mean()


@case("a.0.weight", "c.0.0.weight", "b.0.weight")
class DataParallelInside(Net):
    def make(self) -> None:
        self.c = nn.ModuleList([conv_bn(8, 6), nn.Conv2d(6, 8, 1)])
        self.run = nn.DataParallel(self.c[0])

    def between(self, y: Tensor) -> Tensor:
        return self.c[1](self.run(y))


@case("0.0.weight", "1.weight")
class Aliases(nn.Sequential):
    """The same layers under other names, in other containers, and a parent known to its child."""

    def __init__(self) -> None:
        super().__init__(conv_bn(3, 8), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.__dict__["stem"], self.by_name = self[0], {"stem": self[0], "all": [self[1], (self[3],)]}
        self[0].__dict__["parent"] = self

    def forward(self, x: Tensor) -> Tensor:
        return self.by_name["all"][1][0](self[2](self.by_name["all"][0](self[0].parent.stem(x))))
