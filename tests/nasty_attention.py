"""Attention in all its spellings, and what stands beside it in transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nasty import Net, Tokens, case, drawn, tokens, words
from torch import Tensor, nn


@case("linear1.weight", inputs=tokens)
class TransformerBlock(nn.Module):
    """torch's own attention, and what is free in a transformer: the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.linear1, self.linear2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


@case("1.weight", inputs=tokens)
class AttentionSequenceFirst(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 8))
        self.attention = nn.MultiheadAttention(8, 4, kdim=12, vdim=12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self[0](x).transpose(0, 1)
        hidden = self[1](y)
        out, weights = self.attention(y, hidden, hidden, average_attn_weights=False)
        return self[2](hidden) + out, weights


@case("layers.0.linear1.weight", "layers.1.linear1.weight", inputs=tokens)
class TorchEncoder(nn.TransformerEncoder):
    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        super().__init__(layer, 2, enable_nested_tensor=False)


@case("encoder.layers.0.linear1.weight", "decoder.layers.0.linear1.weight", inputs=lambda s, b: (tokens(s, b),) * 2)
class TorchTransformer(nn.Transformer):
    def __init__(self) -> None:
        super().__init__(8, 2, 1, 1, 16, 0.0, batch_first=True)


class Heads(Tokens):
    """Two heads of four, split by `view`."""

    def make(self) -> None:
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def between(self, y: Tensor) -> Tensor:
        b, n, _ = y.shape
        q, k, v = (layer(y).view(b, n, 2, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


@case("a.weight", "v.weight", "out.weight", pinned={"q.weight": "attention"}, inputs=tokens)
class HeadsBySdpa(Heads):
    pass


@case("a.weight", "q.weight", "k.weight", "v.weight", "out.weight", inputs=tokens)
class HeadsByMatmul(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


@case("q.weight", "v.weight", inputs=tokens)
class HeadsByEinsum(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k).div(2).softmax(-1)
        return torch.einsum("bhnm,bhmd->bhnd", weights, v)


@case("v.weight", "a.weight", inputs=tokens, later=True)
class HeadsScaledByWidth(Heads):
    """The scale is computed from the shape: no operator shows it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


@case("v.weight", inputs=tokens)
class HeadsCausal(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@case("q.weight", "v.weight", inputs=tokens)
class HeadsMasked(Heads):
    def make(self) -> None:
        super().make()
        self.register_buffer("mask", torch.tril(torch.ones(6, 6, dtype=torch.bool)), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~self.mask, float("-inf")).softmax(-1) @ v


@case("v.weight", inputs=tokens)
class LinearAttention(Heads):
    """softmax(q) (softmax(k) v)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


@case("q.weight", "v.weight", inputs=tokens)
class ReluAttention(Heads):
    """EfficientViT: ones are padded to the values for the denominator."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        v = F.pad(v, (0, 1), value=1.0)
        out = q.relu() @ (k.relu().mT @ v)
        return out[..., :-1] / (out[..., -1:] + 1e-3)


@case("v.weight", inputs=tokens)
class CosineAttention(Heads):
    def make(self) -> None:
        super().make()
        self.scale = nn.Parameter(torch.zeros(2, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale.exp()).softmax(-1) @ v


@case(inputs=tokens)
class RotaryAttention(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(q.shape[2], device=q.device, dtype=q.dtype)[:, None] * torch.tensor(
            [0.3, 0.7], device=q.device
        )

        def turned(t: Tensor) -> Tensor:
            first, second = t.chunk(2, -1)
            return torch.cat(
                [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1
            )

        return (turned(q) @ turned(k).mT).softmax(-1) @ v


@case("v.weight", "k.weight", inputs=tokens)
class GroupedQuery(Heads):
    def make(self) -> None:
        super().make()
        self.k, self.v = nn.Linear(8, 4), nn.Linear(8, 4)

    def between(self, y: Tensor) -> Tensor:
        b, n, _ = y.shape
        q = self.q(y).view(b, n, 2, -1).transpose(1, 2)
        k, v = (layer(y).view(b, n, 1, -1).transpose(1, 2).repeat_interleave(2, 1) for layer in (self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


@case("a.weight", "out.weight", inputs=tokens)
class QkvInOne(Tokens):
    def make(self) -> None:
        self.qkv, self.out, self.heads = nn.Linear(8, 24, bias=False), nn.Linear(8, 8), 2

    def between(self, y: Tensor) -> Tensor:
        b, n, _ = y.shape
        q, k, v = self.qkv(y).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


@case("qkv.weight", inputs=tokens)
class QkvChunked(Tokens):
    """One head and no scale: the i-th of queries, keys and values go together."""

    def make(self) -> None:
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        q, k, v = self.qkv(y).chunk(3, -1)
        return self.out((q @ k.mT).softmax(-1) @ v)


@case("q.weight", "v.weight", "a.weight", inputs=lambda s, b: (tokens(s, b), drawn(s + 1, b, 4, 8)))
class CrossAttention(Heads):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(self.a(x)).view(b, n, 2, -1).transpose(1, 2)
        k, v = (layer(other).view(b, 4, 2, -1).transpose(1, 2) for layer in (self.k, self.v))
        return self.head(self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2)))


@case("mlp1.weight")
class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2, self.last = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp1, self.mlp2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))
        return self.head(self.last(x)[:, 0])


@case("patch.weight", "mlp1.weight", "q.weight", "v.weight")
class VisionTransformerWithoutNorm(nn.Module):
    """Nothing is normalised over the width: class token, positions and residual stream go along."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 10)
        self.out, self.mlp1, self.mlp2, self.head = (
            nn.Linear(10, 8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.out((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))
        x = x + self.mlp2(F.gelu(self.mlp1(x)))
        return self.head(x[:, 0])


@case("mlp1.weight", inputs=lambda s, b: drawn(s, b, 8, 8, 8))
class SwinBlock(nn.Module):
    """Shifted windows of 4 x 4 with a bias by relative position; channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(49, 2))
        y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        place = torch.stack([y, x]).flatten(1)
        difference = place[:, :, None] - place[:, None] + 3
        self.register_buffer("index", difference[0] * 7 + difference[1])
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp1, self.mlp2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-2, -2), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (c // 2) ** -0.5
        scores = scores + self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))


@case("a.0.weight", "v.weight", "b.0.weight")
class WindowsWithoutNorm(Net):
    """Windows over space, channels in a residual that nothing normalises: all of it can shrink."""

    def make(self) -> None:
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        t = torch.roll(y, (-2, -2), (2, 3))
        t = t.view(b, -1, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        t = (self.q(t) @ self.k(t).mT).softmax(-1) @ self.v(t)
        t = t.view(b, h // 4, w // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)
        return y + torch.roll(t, (2, 2), (2, 3))


@case("mlp.0.weight", "v.weight", inputs=tokens)
class ClassAttention(Tokens):
    """CaiT: only the first token asks; LayerScale."""

    def make(self) -> None:
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.gamma = nn.Parameter(torch.full((8,), 1e-4))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def between(self, y: Tensor) -> Tensor:
        q = self.q(y[:, :1])
        first = self.out((q @ self.k(y).mT).softmax(-1) @ self.v(y))
        y = torch.cat([y[:, :1] + self.gamma * first, y[:, 1:]], 1)
        return y + self.gamma * self.mlp(y)


@case("out.weight", inputs=tokens)
class CrossCovariance(Heads):
    """XCiT: the matrix is channels x channels."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (F.normalize(t.transpose(-2, -1), dim=-1) for t in (q, k))
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v.transpose(-2, -1)).transpose(-2, -1)


@case("value.weight", "a.weight", inputs=tokens)
class PooledByQueries(Tokens):
    def make(self) -> None:
        self.queries, self.value = nn.Parameter(torch.randn(3, 8)), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        return torch.einsum("kc,bnc->bkn", self.queries, y).softmax(-1) @ self.value(y)


@case("a.weight", inputs=tokens)
class ExternalMemory(Tokens):
    """Two shared memories with double normalisation."""

    def make(self) -> None:
        self.keys, self.values = nn.Linear(8, 5, bias=False), nn.Linear(5, 8, bias=False)

    def between(self, y: Tensor) -> Tensor:
        weights = self.keys(y).softmax(1)
        return y + self.values(weights / (1e-9 + weights.sum(-1, keepdim=True)))


@case("gate.weight", inputs=tokens)
class SwiGlu(Tokens):
    def make(self) -> None:
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def between(self, y: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(y)) * self.up(y))


@case("up.weight", inputs=tokens)
class GatedByChunk(Tokens):
    def make(self) -> None:
        self.up, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def between(self, y: Tensor) -> Tensor:
        value, gate = self.up(y).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


@case("channel1.weight", "token1.weight", inputs=tokens)
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.token1, self.token2 = nn.Linear(6, 10), nn.Linear(10, 6)
        self.channel1, self.channel2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token2(F.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.channel2(F.gelu(self.channel1(self.norm2(x))))


@case("up.weight", inputs=tokens)
class SpatialGating(Tokens):
    """gMLP: half of the channels, mixed along the tokens, gates the other half."""

    def make(self) -> None:
        self.up, self.space, self.down = nn.Linear(8, 16), nn.Conv1d(6, 6, 1), nn.Linear(8, 8)

    def between(self, y: Tensor) -> Tensor:
        u, v = self.up(y).chunk(2, -1)
        return self.down(u * self.space(v))


@case("down.weight", "up.weight", inputs=words)
class LanguageModel(nn.Module):
    """Embedding, positions by a table, tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8), nn.Embedding(6, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        y = y + self.down(F.relu(self.up(y)))
        return y @ self.words.weight.t()


@case("words.weight:1", "linear.weight", inputs=words)
class OnlyEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear, self.head = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.linear(self.words(x).mean(1)).relu())


@case("bag.weight:1", inputs=words)
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(10, 8, mode="sum"), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


@case("v.weight", "a.weight", inputs=tokens)
class HeadsInAttributes(Heads):
    """The number of heads and their width as attributes, one of which equals a size that is something else."""

    def make(self) -> None:
        super().make()
        self.heads, self.width, self.whole = 2, 4, 8

    def between(self, y: Tensor) -> Tensor:
        b, n, _ = y.shape
        q, k, v = (t(y).view(b, n, self.heads, self.width).transpose(1, 2) for t in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.whole))
