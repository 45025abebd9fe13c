"""Flows, experts, graphs, points, generators, sequences: whole networks in miniature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, Tokens, case, drawn, image, tokens
from torch import Tensor, nn
from zoo import conv_bn


@case("encoder.0.weight", "mean.weight", "decoder.0.weight", modes=(False,), inputs=lambda s, b: drawn(s, b, 6))
class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
        self.mean, self.logvar = nn.Linear(10, 4), nn.Linear(10, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return self.decoder(z), mean.square().sum(1)


@case("scale.0.weight", "shift.0.weight", inputs=lambda s, b: drawn(s, b, 6))
class CouplingFlow(nn.Module):
    """RealNVP: halves of the data take turns; the log determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh())
        self.shift = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, two = x.chunk(2, 1)
        total = x.new_zeros(len(x))
        for _ in range(2):
            s = self.scale(one)
            one, two = two * s.exp() + self.shift(one), one
            total = total + s.sum(1)
        return torch.cat([one, two], 1), total


@case("f.0.0.weight", "g.0.0.weight", "a.0.weight", "b.0.weight")
class Reversible(Net):
    def make(self) -> None:
        self.f = nn.Sequential(conv_bn(4, 6), nn.Conv2d(6, 4, 1))
        self.g = nn.Sequential(conv_bn(4, 6), nn.Conv2d(6, 4, 1))

    def between(self, y: Tensor) -> Tensor:
        one, two = torch.chunk(y, 2, dim=1)
        one = one + self.f(two)
        return torch.cat([one, two + self.g(one)], 1)


@case("a.weight", "experts.0.0.weight", "experts.2.0.weight", inputs=tokens)
class SoftExperts(Tokens):
    """A mixture weighted by a gate; all run."""

    def make(self) -> None:
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3))

    def between(self, y: Tensor) -> Tensor:
        outs = torch.stack([expert(y) for expert in self.experts], -1)
        return torch.einsum("bnce,bne->bnc", outs, self.gate(y).softmax(-1))


@case("a.weight", "experts.0.0.weight", inputs=tokens)
class RoutedExperts(Tokens):
    """Tokens are sent to their best expert by masks."""

    def make(self) -> None:
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2))

    def between(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, y.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().squeeze(-1)
            out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, None])
        return out.view_as(y)


@case("a.weight", "one.weight", inputs=tokens)
class ExpertsInOneTensor(Tokens):
    """Batched experts: parameters of shape (experts, in, out)."""

    def make(self) -> None:
        self.gate, self.one = nn.Linear(8, 3), nn.Linear(8, 8)
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 8, 6)), nn.Parameter(torch.randn(3, 6, 8))

    def between(self, y: Tensor) -> Tensor:
        hidden = torch.einsum("bnc,ech->benh", y, self.w1).relu()
        outs = torch.einsum("benh,ehc->benc", hidden, self.w2)
        return self.one((outs * self.gate(y).softmax(-1).permute(0, 2, 1).unsqueeze(-1)).sum(1))


@case("a.0.weight", "b.0.weight")
class EarlyExit(Net):
    def make(self) -> None:
        self.exit = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        early = self.exit(y.mean((2, 3)))
        if not self.training and bool((early.softmax(1).amax(1) > 1.1).all()):
            return early
        return self.head(self.b(y)).mean((2, 3)) + early


@case("layers.0.weight", "layers.2.weight", inputs=lambda s, b: drawn(s, b, 2))
class FourierFeatures(nn.Module):
    """NeRF: sines and cosines of the input, a skip of them into the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 5))
        self.layers, self.head = nn.ModuleList([nn.Linear(10, 8), nn.Linear(18, 8), nn.Linear(8, 6)]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        p = x @ self.frequencies
        p = h = torch.cat([p.sin(), p.cos()], -1)
        for i, layer in enumerate(self.layers):
            h = layer(torch.cat([h, p], -1) if i == 1 else h).relu()
        return self.head(h)


@case("a.0.weight", "b.0.weight")
class Capsules(Net):
    """Routing by agreement; capsules of four numbers each."""

    def make(self) -> None:
        self.w = nn.Parameter(torch.randn(3, 4, 2))

    def between(self, y: Tensor) -> Tensor:
        u = F.adaptive_avg_pool2d(y, 1).view(y.shape[0], -1, 4) @ self.w.flatten(0, 0).transpose(0, 1).reshape(4, 6)
        u = u.view(y.shape[0], -1, 3, 2)
        logits = torch.zeros(*u.shape[:3], dtype=u.dtype, device=u.device)
        for _ in range(2):
            v = (logits.softmax(2).unsqueeze(-1) * u).sum(1, keepdim=True)
            v = v * v.norm(dim=-1, keepdim=True) / (1 + v.square().sum(-1, keepdim=True))
            logits = logits + (u * v).sum(-1)
        return y * v.mean((1, 2, 3))[:, None, None, None]


@case("base1.weight", inputs=lambda s, b: drawn(s, b, 5))
class Splines(nn.Module):
    """KAN: radial bases of every input into one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 4))
        self.spline1, self.base1 = nn.Linear(5 * 4, 8, bias=False), nn.Linear(5, 8)
        self.spline2, self.base2 = nn.Linear(8 * 4, 3, bias=False), nn.Linear(8, 3)

    def layer(self, x: Tensor, spline: nn.Module, base: nn.Module) -> Tensor:
        bases = torch.exp(-((x[..., None] - self.grid) ** 2))
        return spline(bases.flatten(-2)) + base(F.silu(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x, self.spline1, self.base1), self.spline2, self.base2)


@case("w1.weight", "w2.weight", inputs=lambda s, b: (drawn(s, 5, 6), drawn(s + 1, 5, 5).relu()))
class GraphConvolution(nn.Module):
    """Nodes are the batch; features mixed by an adjacency matrix, normalised by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a = adjacency + torch.eye(len(adjacency), dtype=x.dtype, device=x.device)
        a = a / a.sum(1, keepdim=True)
        return self.head(a @ self.w2(F.relu(a @ self.w1(x))))


@case(
    "w.weight", "v.weight", inputs=lambda s, b: (drawn(s, 5, 6), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]]))
)
class MessagePassing(nn.Module):
    """Messages along edges: gathered, worked on, added up at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.head = nn.Linear(6, 8), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.w(x)
        messages = self.v(torch.cat([h[edges[0]], h[edges[1]]], -1)).relu()
        total = torch.zeros_like(h).index_add_(0, edges[1], messages)
        return self.head(h + total)


@case("transform.0.weight", "matrix.0.weight", "conv2.weight", inputs=lambda s, b: drawn(s, b, 3, 10))
class PointNet(nn.Module):
    """A predicted 3 x 3 and a predicted 8 x 8 matrix; the maximum over points, beside every point again."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.matrix = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 9))
        self.conv1 = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.features = nn.Linear(8, 64)
        self.conv2, self.head = nn.Conv1d(8, 10, 1), nn.Conv1d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(x).max(2)[0]).view(-1, 3, 3)
        matrix = matrix + torch.eye(3, dtype=x.dtype, device=x.device)
        y = self.conv1(torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1))
        mix = self.features(y.amax(2)).view(-1, 8, 8)
        y = torch.bmm(y.transpose(2, 1), mix).transpose(2, 1)
        whole = self.conv2(y).max(2, keepdim=True)[0].repeat(1, 1, x.shape[2])
        return self.head(torch.cat([y, whole], 1))


@case("hyper.0.weight", "b.0.weight")
class Hypernetwork(Net):
    """A kernel made by a linear layer from a parameter."""

    def make(self) -> None:
        self.code, self.hyper = (
            nn.Parameter(torch.randn(4)),
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8 * 8)),
        )

    def between(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.hyper(self.code).view(8, 8, 1, 1))


@case("up.0.weight", "up.3.weight", "linear.weight", inputs=lambda s, b: drawn(s, b, 5))
class Generator(nn.Module):
    """A vector becomes a map by view; the channels are a number in the code, or follow by -1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 8 * 16)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 3, padding=1),
            nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.up(self.linear(z).view(len(z), -1, 4, 4))


@case(
    "stem.weight",
    "down.0.weight",
    "time.0.weight",
    inputs=lambda s, b: (image(s, b), torch.tensor([1.0, 7.0, 3.0])[:b].double()),
)
class Diffusion(nn.Module):
    """A sinusoidal time embedding added to the maps of a small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 10), nn.SiLU(), nn.Linear(10, 12))
        self.stem, self.down, self.mid = nn.Conv2d(3, 6, 3, padding=1), conv_bn(6, 12, stride=2), conv_bn(12, 12)
        self.up, self.out = nn.ConvTranspose2d(24, 6, 2, 2), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(4, device=t.device, dtype=t.dtype))
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        a = self.stem(x)
        b = self.down(a)
        c = self.mid(b + time[:, :, None, None])
        return self.out(torch.cat([self.up(torch.cat([b, c], 1)), a], 1))


@case("a.0.weight", "c.weight", "b.0.weight")
class CostVolume(Net):
    """Stereo: one map against the other shifted, summed over channels."""

    def make(self) -> None:
        self.c, self.b = nn.Conv2d(3, 8, 1), conv_bn(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x), self.c(x)
        volume = []
        for d in range(3):
            shifted = F.pad(right, (d, 0, 0, 0))[..., : right.shape[-1]]
            volume.append((left * shifted).sum(1))
        return self.head(self.b(torch.stack(volume, 1)))


@case("a.0.weight", "b.0.weight", inputs=image)
class VolumeByConcatenation(Net):
    """Stereo: pairs of maps written into one volume for a 3D convolution."""

    def make(self) -> None:
        self.conv = nn.Conv3d(16, 8, 3, padding=1)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        volume = y.new_zeros(b, 2 * c, 3, h, w)
        for d in range(3):
            volume[:, :c, d, :, d:] = y[..., d:]
            volume[:, c:, d, :, d:] = y[..., : w - d]
        return self.conv(volume).mean(2)


@case("a.0.weight", "frames.weight", inputs=lambda s, b: drawn(s, b, 4, 3, 8, 8))
class FramesInTheBatch(Net):
    """Video: frames are folded into the batch, unfolded, and mixed along time."""

    def make(self) -> None:
        self.frames = nn.Conv1d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        y = self.a(x.flatten(0, 1)).mean((2, 3)).view(b, t, -1)
        return self.head(self.frames(y.transpose(1, 2)).mean(2))


@case("a.0.weight", "offset.weight")
class Deformable(Net):
    """Deformable sampling written out: nine shifted samples, stacked, weighted, convolved."""

    def make(self) -> None:
        self.offset, self.mix = nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(5, 8, 1)
        self.kernel = nn.Parameter(torch.randn(8, 8, 2))

    def between(self, y: Tensor) -> Tensor:
        move = self.mix(self.offset(y)).tanh()
        line = torch.linspace(-1, 1, 8, dtype=y.dtype, device=y.device)
        base = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        samples = [
            F.grid_sample(y, base + 0.2 * move[:, 2 * k : 2 * k + 2].permute(0, 2, 3, 1), align_corners=True)
            for k in range(2)
        ]
        return torch.einsum("bchwk,ock->bohw", torch.stack(samples, -1), self.kernel)


@case("student.0.weight", "teacher.0.weight")
class Distilled(nn.Module):
    """A frozen teacher, run without gradients and always in eval mode; maps compared inside."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = conv_bn(3, 8), conv_bn(3, 8)
        self.heads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(2))
        self.teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            t = self.teacher(x)
        s = self.student(x)
        return self.heads[0](s), self.heads[1](t) + ((s - t) ** 2).sum(1, keepdim=True)


@case("online.0.weight", "online.3.weight")
class Momentum(nn.Module):
    """BYOL: a moving copy of the weights, updated in forward when training."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(*conv_bn(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1))
        self.target = nn.Sequential(*conv_bn(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            with torch.no_grad():
                for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    old.mul_(0.9).add_(new, alpha=0.1)
        return self.online(x), self.target(x)


@case("a.0.weight", "b.0.weight", "codes.0.weight")
class VectorQuantised(Net):
    """The nearest entry of a codebook, straight through."""

    def make(self) -> None:
        self.codes = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 1))
        self.book = nn.Embedding(6, 8)

    def between(self, y: Tensor) -> Tensor:
        z = self.codes(y).permute(0, 2, 3, 1)
        flat = z.reshape(-1, z.shape[-1])
        distance = (
            flat.square().sum(1, keepdim=True) + self.book.weight.square().sum(1) - 2 * flat @ self.book.weight.t()
        )
        q = self.book(distance.argmin(1)).view_as(z)
        return y + (z + (q - z).detach()).permute(0, 3, 1, 2)


@case("a.0.weight", "b.0.weight")
class NetVlad(Net):
    """Soft assignment to clusters, residuals summed; the head reads the flattened sums."""

    def make(self) -> None:
        self.assign, self.centres, self.head = nn.Conv2d(8, 3, 1), nn.Parameter(torch.randn(3, 8)), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        weights = self.assign(y).flatten(2).softmax(1)
        residual = y.flatten(2).unsqueeze(1) - self.centres[None, :, :, None]
        vlad = (residual * weights.unsqueeze(2)).sum(-1)
        return self.head(F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1))


@case("conv.weight", "gru.weight", inputs=lambda s, b: drawn(s, b, 3, 12))
class WaveNet(nn.Module):
    """Causal dilated convolutions, gated, with skips summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1)
        self.gru = nn.Conv1d(8, 12, 2, dilation=2)
        self.out, self.skip, self.head = nn.Conv1d(6, 8, 1), nn.Conv1d(6, 5, 1), nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, skips = self.conv(x), 0
        for _ in range(2):
            value, gate = self.gru(F.pad(y, (2, 0))).chunk(2, 1)
            z = value.tanh() * gate.sigmoid()
            y, skips = y + self.out(z), skips + self.skip(z)
        return self.head(skips.relu())


@case("state.in_proj.weight", inputs=tokens)
class StateSpace(nn.Module):
    """Mamba in small: a depthwise causal convolution, a selective scan over time, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.ModuleDict({"in_proj": nn.Linear(8, 20), "x_proj": nn.Linear(10, 5), "dt": nn.Linear(1, 10)})
        self.conv, self.out = nn.Conv1d(10, 10, 3, groups=10, padding=2), nn.Linear(10, 8)
        self.a_log, self.d = nn.Parameter(torch.randn(10, 2)), nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.state["in_proj"](x).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        dt, b, c = self.state["x_proj"](y).split([1, 2, 2], -1)
        dt = F.softplus(self.state["dt"](dt))
        a = -self.a_log.exp()
        h = torch.zeros(x.shape[0], y.shape[2], 2, dtype=x.dtype, device=x.device)
        outs = []
        for t in range(x.shape[1]):
            h = h * (dt[:, t, :, None] * a).exp() + (dt[:, t] * y[:, t])[..., None] * b[:, t, None]
            outs.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(outs, 1) + y * self.d
        return self.out(y * F.silu(gate))


@case("a.0.weight", "b.0.weight", inputs=lambda s, b: drawn(s, b, 3, 8, 8).float(), float64=False)
class Half(Net):
    """A block that computes in bfloat16 under autocast."""

    def make(self) -> None:
        self.c = nn.Conv2d(8, 8, 1)

    def between(self, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.c(y.float())
