"""Normalisations, parametrisations, layers with memory, and weights that are computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, Tokens, case, drawn, image, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from zoo import conv_bn


@case("wide.weight", "b.0.weight")
class ConvNext(Net):
    """Depthwise, layer norm over channels last, LayerScale; the stem's channels are normalised over."""

    def make(self) -> None:
        self.depth, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow, self.gamma = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.full((8,), 1e-6))

    def between(self, y: Tensor) -> Tensor:
        t = self.norm(self.depth(y).permute(0, 2, 3, 1))
        return y + (self.gamma * self.narrow(F.gelu(self.wide(t)))).permute(0, 3, 1, 2)


@case("b.0.weight", pinned={"a.0.weight": "mean over"})
class LayerNormChannelsFirst(Net):
    def make(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def between(self, y: Tensor) -> Tensor:
        u = y.mean(1, keepdim=True)
        s = (y - u).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((y - u) / torch.sqrt(s + 1e-6)) + self.bias[:, None, None]


@case("b.0.weight", pinned={"a.0.weight": "layer norm"})
class LayerNormOverAll(Net):
    def make(self) -> None:
        self.norm = nn.LayerNorm([8, 8, 8])

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


@case("a.0.weight", "b.0.weight")
class LayerNormOverSpace(Net):
    """Only height and width are normalised over."""

    def make(self) -> None:
        self.norm = nn.LayerNorm([8, 8])

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


@case("b.0.weight", pinned={"a.0.weight": "mean over"})
class GlobalResponse(Net):
    """ConvNeXt v2's GRN: norm over space, divided by its mean over channels."""

    def make(self) -> None:
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 8, 1, 1)), nn.Parameter(torch.zeros(1, 8, 1, 1))

    def between(self, y: Tensor) -> Tensor:
        g = y.norm(p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (y * (g / (g.mean(1, keepdim=True) + 1e-6))) + self.beta + y


@case("a.0.weight", "one.weight", "three.weight", "b.0.weight", pinned={"two.weight": "one group"})
class GroupNorms(Net):
    """One channel a group, all channels a group, two."""

    def make(self) -> None:
        self.one, self.n1 = nn.Conv2d(8, 8, 1), nn.GroupNorm(8, 8)
        self.two, self.n2 = nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8)
        self.three, self.n3 = nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.n3(self.three(self.n2(self.two(self.n1(self.one(y))))))


@case("a.0.weight", "c.weight", "d.weight")
class SharedGroupNorm(Net):
    """One group norm behind two convolutions, and used twice."""

    def make(self) -> None:
        self.c, self.d, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(self.d(self.norm(self.c(y)).relu()))


@case("a.0.weight", "c.weight", "b.0.weight")
class InstanceNorms(Net):
    def make(self) -> None:
        self.c, self.norm = nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.bare = nn.InstanceNorm2d(8)

    def between(self, y: Tensor) -> Tensor:
        return self.bare(self.norm(self.c(y)) * y)


@case("up.weight", pinned={"a.weight": "mean over"}, inputs=tokens)
class RmsNorm(Tokens):
    def make(self) -> None:
        self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.down(self.up(self.norm(y)).relu())


@case("up.weight", pinned={"a.weight": "mean over"}, inputs=tokens)
class RmsNormByHand(Tokens):
    def make(self) -> None:
        self.scale, self.up, self.down = nn.Parameter(torch.ones(8)), nn.Linear(8, 12), nn.Linear(12, 8)

    def between(self, y: Tensor) -> Tensor:
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.down(self.up(y).relu())


@case("0.weight", "3.weight", inputs=lambda s, b: drawn(s, b, 5))
class Perceptron(nn.Sequential):
    """Batch norm over vectors, without affine parameters, without statistics, with momentum None."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(5, 8), nn.BatchNorm1d(8, affine=False), nn.SELU(), nn.Linear(8, 8),
            nn.BatchNorm1d(8, track_running_stats=False), nn.Sigmoid(), nn.Linear(8, 8),
            nn.BatchNorm1d(8, momentum=None), nn.AlphaDropout(0.5), nn.Linear(8, 2),
        )  # fmt: skip


@case("a.0.weight", "c.weight")
class OneNormBehindTwo(Net):
    def make(self) -> None:
        self.c, self.d, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(self.c(y)).relu() - self.norm(self.d(y)).relu()


@case("a.0.weight", "c.weight", "b.0.weight")
class FrozenNorm(Net):
    """torchvision's: statistics are plain buffers."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(8))

    def between(self, y: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return self.c(y) * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


@case("a.0.weight", "b.0.weight", modes=(False,))
class SyncedNorm(Net):
    """Cannot train on a CPU: eval mode only."""

    def make(self) -> None:
        self.norm = nn.SyncBatchNorm(8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


@case("a.0.weight", "b.0.weight", pinned={"c.weight_v": "weight norm"})
class OldWeightNorm(Net):
    """A silenced filter of length zero is 0 / 0: its outputs stay, its inputs go."""

    def make(self) -> None:
        self.c = nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.d = nn.utils.weight_norm(nn.Conv2d(8, 8, 1), dim=None)

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("a.0.weight", "b.0.weight")
class NewWeightNorm(Net):
    def make(self) -> None:
        self.c = parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1), dim=0)
        self.d = parametrizations.weight_norm(nn.ConvTranspose2d(6, 8, 1), dim=1)

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("a.0.weight", "b.0.weight", "c.weight_orig")
class SpectralNorms(Net):
    def make(self) -> None:
        self.c = nn.utils.spectral_norm(nn.Conv2d(8, 6, 3, padding=1))
        self.d = parametrizations.spectral_norm(nn.Conv2d(6, 8, 1))

    def between(self, y: Tensor) -> Tensor:
        return self.d(self.c(y))


@case("b.0.weight")
class Orthogonal(Net):
    """Rows that depend on one another."""

    def make(self) -> None:
        self.c = parametrizations.orthogonal(nn.Linear(8, 8))

    def between(self, y: Tensor) -> Tensor:
        return self.c(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Positive(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


@case("b.0.weight")
class CustomParametrisations(Net):
    def make(self) -> None:
        self.c, self.d, self.e = nn.Linear(8, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        parametrize.register_parametrization(self.c, "weight", Symmetric())
        parametrize.register_parametrization(self.d, "weight", Positive())
        parametrize.register_parametrization(self.e, "weight", Halved())

    def between(self, y: Tensor) -> Tensor:
        return self.e(self.d(self.c(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


@case("d.parametrizations.weight.original", "a.0.weight", "b.0.weight")
class ScaledParametrisation(Net):
    def make(self) -> None:
        self.d, self.e = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        parametrize.register_parametrization(self.d, "weight", Halved())

    def between(self, y: Tensor) -> Tensor:
        return self.e(self.d(y))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


@case("c.weight", "b.0.weight", pinned={"a.0.weight": "over this dimension"})
class WeightStandardised(Net):
    """A filter's mean changes with every input that goes; the filters themselves can go."""

    def make(self) -> None:
        self.c, self.norm = Standardised(8, 8, 3, padding=1), nn.GroupNorm(4, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(self.c(y))


@case("a.0.weight", "c.weight")
class Prelus(Net):
    """One slope for all, one per channel shared by two."""

    def make(self) -> None:
        self.one, self.each = nn.PReLU(), nn.PReLU(8)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        return self.one(self.each(self.c(y)) + self.each(self.d(self.one(y))))


@case("a.0.weight", "b.0.weight")
class LearntActivations(Net):
    """Swish and a rational function with parameters of their own for every channel."""

    def make(self) -> None:
        self.beta, self.p = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.randn(8, 3))

    def between(self, y: Tensor) -> Tensor:
        y = y * torch.sigmoid(self.beta * y)
        p = self.p[None, :, :, None, None]
        return (p[:, :, 0] + p[:, :, 1] * y + p[:, :, 2] * y**2) / (1 + y.abs())


@case("a.0.weight", "b.0.weight")
class FilterResponse(Net):
    """FRN with a thresholded linear unit."""

    def make(self) -> None:
        self.gamma, self.beta, self.tau = (nn.Parameter(torch.ones(1, 8, 1, 1)) for _ in range(3))

    def between(self, y: Tensor) -> Tensor:
        nu = y.pow(2).mean((2, 3), keepdim=True)
        return torch.max(self.gamma * (y * torch.rsqrt(nu + 1e-6)) + self.beta, self.tau)


@case("b.0.weight", pinned={"a.0.weight": "avg_pool"})
class LocalResponse(Net):
    """AlexNet's: neighbouring channels."""

    def make(self) -> None:
        self.norm = nn.LocalResponseNorm(3)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


@case("a.0.weight", "style.0.weight", "b.0.weight")
class Adain(Net):
    """Instance norm with a scale and shift from another branch, in one linear layer."""

    def make(self) -> None:
        self.style = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 16))

    def between(self, y: Tensor) -> Tensor:
        gamma, beta = self.style(y.mean((2, 3))).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        return F.instance_norm(y) * (1 + gamma) + beta


@case("a.0.weight", "film.0.weight", "b.0.weight", inputs=lambda s, b: (image(s, b), drawn(s, b, 4)))
class Film(Net):
    def make(self) -> None:
        self.film = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 16))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.a(x)
        gamma, beta = torch.split(self.film(condition), y.shape[1], -1)
        return self.head(self.b(y * gamma[..., None, None] + beta[..., None, None]))


@case("a.0.weight", "shared.0.weight", "gamma.weight")
class Spade(Net):
    def make(self) -> None:
        self.norm, self.shared = nn.BatchNorm2d(8, affine=False), conv_bn(3, 6)
        self.gamma, self.beta = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, map_ = self.a(x), self.shared(x)
        return self.head(self.b(self.norm(y) * (1 + self.gamma(map_)) + self.beta(map_)))


@case("norms.0.weight", "norms.1.weight", inputs=lambda s, b: (image(s, b), torch.tensor(1)))
class ChosenNorm(Net):
    """Conditional normalisation by an index that is read as a number: only one runs."""

    def make(self) -> None:
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(self.b(self.norms[int(which)](y) + sum(norm.weight.sum() for norm in self.norms)))


# -- recurrent --------------------------------------------------------------------------------------------------------


@case("a.0.weight", inputs=tokens)
class Lstm(Tokens):
    """A library layer keeps its sizes: it stays as it is, what is before and behind it does not."""

    def make(self) -> None:
        self.a = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.lstm = nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

    def between(self, y: Tensor) -> Tensor:
        return self.lstm(y)[0]


@case("up.weight", inputs=tokens)
class Gru(Tokens):
    def make(self) -> None:
        self.gru, self.up, self.head = nn.GRU(8, 6), nn.Linear(6, 10), nn.Linear(10, 2)

    def between(self, y: Tensor) -> Tensor:
        return self.up(self.gru(y.transpose(0, 1))[1][0]).relu()


@case("up.weight", inputs=tokens)
class PlainRnn(Tokens):
    def make(self) -> None:
        self.rnn, self.up, self.head = nn.RNN(8, 6, nonlinearity="relu", bias=False), nn.Linear(6, 10), nn.Linear(10, 2)

    def between(self, y: Tensor) -> Tensor:
        return self.up(self.rnn(y)[0]).relu()


@case("up.weight", inputs=tokens)
class Cells(Tokens):
    def make(self) -> None:
        self.lstm, self.gru, self.rnn = nn.LSTMCell(8, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 6)
        self.up, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

    def between(self, y: Tensor) -> Tensor:
        h = c = g = r = torch.zeros(y.shape[0], 6, dtype=y.dtype, device=y.device)
        for step in y.unbind(1):
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
            r = self.rnn(g, r)
        return self.up(r).relu()


@case("a.0.weight", "gates.weight", "b.0.weight", inputs=lambda s, b: drawn(s, b, 3, 3, 8, 8))
class ConvLstm(Net):
    """States made of zeros in the code, four gates in one convolution of input beside state."""

    def make(self) -> None:
        self.gates, self.b = nn.Conv2d(14, 24, 3, padding=1), conv_bn(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = c = None
        for frame in x.unbind(1):
            y = self.a(frame)
            if h is None:
                h = c = y.new_zeros(y.shape[0], self.gates.out_channels // 4, *y.shape[2:])
            i, f, o, g = self.gates(torch.cat([y, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(self.b(h))


@case("a.0.weight", "update.weight", "b.0.weight")
class ConvGru(Net):
    """Unrolled twice with one set of weights."""

    def make(self) -> None:
        self.update, self.candidate = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        h = torch.zeros_like(y)
        for _ in range(2):
            reset, update = self.update(torch.cat([y, h], 1)).sigmoid().chunk(2, 1)
            h = (1 - update) * h + update * self.candidate(torch.cat([y, reset * h], 1)).tanh()
        return h
