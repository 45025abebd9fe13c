"""Every layer and function that takes a map of 8 channels to one, between two convolutions: what is exact must go."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from nasty import CASES, Case, Net
from torch import Tensor, nn

# Channel by channel: the channels before must be prunable.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: getattr(nn, name)
        for name in (
            "CELU",
            "ELU",
            "GELU",
            "Hardshrink",
            "Hardsigmoid",
            "Hardswish",
            "Hardtanh",
            "LeakyReLU",
            "LogSigmoid",
            "Mish",
            "PReLU",
            "ReLU6",
            "SELU",
            "SiLU",
            "Sigmoid",
            "Softplus",
            "Softshrink",
            "Softsign",
            "Tanh",
            "Tanhshrink",
            "Identity",
            "Dropout",
            "Dropout2d",
            "FeatureAlphaDropout",
        )
    },
    "Threshold": lambda: nn.Threshold(0.1, 20.0),
    "RReLU": lambda: nn.RReLU(0.2, 0.2),
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(3),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d((3, None)),
    "AvgPool2d": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "MaxPool2d": lambda: nn.MaxPool2d(3, 1, 1, dilation=2),
    "Upsample": lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(size=5),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d((0, 1, 2, 0)),
    "ZeroPad2d": lambda: nn.ZeroPad2d((-1, 2, 0, 0)),
    "CircularPad2d": lambda: nn.CircularPad2d(1),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 3.5),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(8, affine=True),
    "BatchNorm2d": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "GroupNormOfOne": lambda: nn.GroupNorm(8, 8),
    "GroupNormOfTwo": lambda: nn.GroupNorm(4, 8),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(8, 8, 3, groups=8),
    "Fold": lambda: nn.Sequential(nn.Unfold(2, stride=2), nn.Fold(8, 2, stride=2)),
    "Unflatten": lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8))),
    "PixelThereAndBack": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    "ParametricTwice": lambda: nn.Sequential(nn.PReLU(8), nn.PReLU(8)),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda y: torch.where(y > 0.2, y, 0.1 * y),
    "clamped": lambda y: y.clamp(0.1, 0.9).clip(min=0.2),
    "lerp": lambda y: torch.lerp(y, y.flip(3), 0.3),
    "addcmul": lambda y: torch.addcmul(y, y, y, value=0.1),
    "addcdiv": lambda y: torch.addcdiv(y, y, y + 2, value=0.1),
    "hypot": lambda y: torch.hypot(y, y + 1),
    "logaddexp": lambda y: torch.logaddexp(y, -y),
    "xlogy": lambda y: torch.xlogy(y, y + 1),
    "copysign": lambda y: torch.copysign(y, y - 0.5),
    "atan2": lambda y: torch.atan2(y, y + 1),
    "fractions": lambda y: y.frac() + y.fmod(0.3) + y.remainder(0.4) + y.floor(),
    "special": lambda y: (
        torch.special.expit(y) + torch.erfinv(y.tanh() * 0.5) + torch.special.log_ndtr(y) + torch.sinc(y)
    ),
    "gamma": lambda y: torch.lgamma(y + 1) + torch.digamma(y + 1),
    "inverses": lambda y: (
        torch.asinh(y) + torch.acosh(y + 1.1) + torch.atanh(y.tanh() * 0.5) + torch.logit(y.sigmoid())
    ),
    "power": lambda y: y**2 + 2**y + y.pow(1.5) + y**y,
    "heaviside": lambda y: y * torch.heaviside(y - 0.5, y.new_tensor(0.5)) + torch.signbit(y) + torch.isclose(y, y),
    "mean_over_space": lambda y: y - y.mean((-2, -1), True) / y.var((2, 3), keepdim=True).add(1e-3).sqrt(),
    "extremes": lambda y: (
        (y - y.amin((2, 3), True)) / (torch.amax(y, (2, 3), keepdim=True) - y.aminmax(dim=3, keepdim=True)[0] + 1)
    ),
    "median": lambda y: y - y.flatten(2).median(2)[0][..., None, None] + y.logsumexp((2, 3), keepdim=True),
    "quantile": lambda y: y - y.flatten(2).quantile(0.3, dim=2)[..., None, None],
    "kthvalue": lambda y: y - y.flatten(2).kthvalue(3, 2)[0][..., None, None],
    "sorted_space": lambda y: y.flatten(2).sort(2, descending=True)[0].view_as(y) + y.argsort(3),
    "softmax_space": lambda y: F.softmax(y.flatten(2), -1).view_as(y) + F.softmin(y, 2) + F.log_softmax(y, 3),
    "cumulated_space": lambda y: y.cumsum(2) + y.cumprod(3) + y.cummax(2)[0] + torch.logcumsumexp(y, 3),
    "diff": lambda y: torch.diff(y, dim=2)[..., :-1] + torch.gradient(y, dim=3)[0][:, :, 1:, 1:],
    "moved": lambda y: y.movedim(1, 3).swapaxes(0, 1).swapaxes(0, 1).moveaxis(3, 1).transpose(2, 3).mT,
    "strided": lambda y: y[:, :, ::2, 1::2] + y.narrow(2, 0, 4)[..., :4] + y.unfold(2, 2, 2)[..., 0][..., :4],
    "windows": lambda y: y.unfold(2, 3, 1).unfold(3, 3, 1).mean((-2, -1)),
    "as_strided": lambda y: torch.as_strided(y, y.shape, y.stride()),
    "tiled": lambda y: y.tile(1, 1, 2, 1) + y.repeat_interleave(2, 2) + torch.cat([y] * 2, 2),
    "rolled": lambda y: torch.roll(y, 3, -1) + torch.flip(y, [-1, -2]),
    "stacked": lambda y: torch.hstack([y, y]).unflatten(1, (2, -1)).sum(1) + torch.vstack([y, y])[: len(y)],
    "split_space": lambda y: (
        torch.cat([t * i for i, t in enumerate(y.tensor_split(3, 2))], 2) + torch.cat(y.split([3, 5], 3), 3)
    ),
    "unbound": lambda y: torch.stack([t * 2 for t in y.unbind(0)]) + torch.stack(list(y.unbind(2)), 2),
    "triangle": lambda y: y.triu() + y.tril(-1) * 2 + torch.diag_embed(y.diagonal(dim1=2, dim2=3)),
    "taken": lambda y: (
        y.take_along_dim(y.argsort(2), 2) + y[:, :, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6], device=y.device)]
    ),
    "masked": lambda y: (
        y.masked_fill(y > 1, 1.0) * (y > 0.1) + y.masked_fill(torch.ones(8, 8, device=y.device).bool().tril(), 0.0)
    ),
    "masked_write": lambda y: y.clone().masked_fill_(y < 0.2, 0.0),
    "scattered": lambda y: (
        torch.zeros_like(y).scatter_add(2, y.argsort(2), y) + y.scatter(3, torch.zeros_like(y).long(), y)
    ),
    "index_space": lambda y: (
        y.index_select(3, torch.arange(4, device=y.device))
        + y.index_fill(2, torch.tensor([1], device=y.device), 0.5)[..., :4]
    ),
    "written_at": lambda y: y.index_put((torch.tensor([0], device=y.device),), y[1:2]),
    "einsum_space": lambda y: torch.einsum("bchw,bcvw->bchv", y, y) / 8 + torch.einsum("bchw->bcwh", y),
    "gram_of_space": lambda y: (
        torch.matmul(y, y.transpose(2, 3)) + torch.baddbmm(y.flatten(0, 1), y.flatten(0, 1), y.flatten(0, 1)).view_as(y)
    ),
    "tensordot": lambda y: torch.tensordot(y, y.new_ones(8, 8), dims=([3], [0])),
    "channel_sum": lambda y: y * y.sum(1, keepdim=True) + torch.einsum("bchw,bchw->bhw", y, y).unsqueeze(1),
    "distance": lambda y: torch.cdist(y, y) + y,
    "normalised_space": lambda y: F.normalize(y, dim=3) + F.layer_norm(y, y.shape[2:]) + F.instance_norm(y),
    "resampled": lambda y: (
        F.interpolate(y, size=(5, 7), mode="area") + F.interpolate(y, (5, 7), mode="bilinear", antialias=True)
    ),
    "padded": lambda y: F.pad(y, (1, 1, 0, 0), mode="circular") + F.pad(y, (2, 0), value=0.5),
    "pooled": lambda y: F.max_pool2d(y, 2, 1) + F.lp_pool2d(y, 2.0, 2, 1) + F.avg_pool2d(y, 2, 1),
    "pooled_flat": lambda y: F.max_pool1d(y.flatten(2), 2).view(*y.shape[:2], 8, 4),
    "pool_by_vector": lambda y: y * F.adaptive_max_pool1d(y.flatten(2), 1)[..., None],
    "quantised": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127),
    "bucketized": lambda y: y + torch.bucketize(y, torch.tensor([0.0, 0.5, 1.0], dtype=y.dtype, device=y.device)),
    "complex": lambda y: torch.view_as_real(torch.complex(y, y + 1) * 1j)[..., 0] + torch.polar(y, y).abs(),
    "fft_space": lambda y: torch.fft.ifft2(torch.fft.fft2(y) * 0.5).real,
    "cast": lambda y: y.float().double().type_as(y) + y.bool().to(y) + y.int().to(y.dtype),
    "bits": lambda y: y * ((y * 8).long() & 3).to(y) + ((y * 8).long() << 1).to(y),
    "rot": lambda y: torch.rot90(y, 2, (2, 3)),
    "outer": lambda y: (
        torch.einsum("bch,bcw->bchw", y.mean(3), y.mean(2))
        + torch.kron(y.mean((2, 3), keepdim=True), y.new_ones(1, 1, 8, 8))
    ),
    "swapped_batch": lambda y: (
        y.transpose(0, 1).reshape(y.shape[1], -1).t().reshape(len(y), 8, 8, -1).permute(0, 3, 1, 2)
    ),
    "flatten_batch": lambda y: y.flatten(0, 1).sin().unflatten(0, (y.shape[0], -1)),
    "checked": lambda y: torch.nan_to_num(y) if torch.isnan(y).any() or y.isinf().any() else y,
    "sized": lambda y: y.reshape(y.size(0), y.numel() // y.size(0) // 64, 8, 8),
    "new_of_size": lambda y: (
        y * torch.ones(y.shape, dtype=y.dtype, device=y.device) + y.new_full(y.size(), 0.5) + torch.zeros_like(y)
    ),
    "eye": lambda y: torch.einsum("bchw,wv->bchv", y, torch.eye(8, dtype=y.dtype, device=y.device)),
    "data": lambda y: y + y.data * 0.5,
    "grad_scale": lambda y: y * 0.1 + (y * 0.9).detach(),
    "halves_swapped": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "gated": lambda y: y[:, : y.shape[1] // 2].repeat(1, 2, 1, 1) * y.sigmoid(),
    "interleaved": lambda y: torch.stack(y.chunk(2, 1), 2).flatten(1, 2),
    "meshgrid": lambda y: (
        y + torch.stack(torch.meshgrid(*[torch.arange(8, device=y.device).to(y)] * 2, indexing="ij")).sum(0)
    ),
    "broadcast": lambda y: torch.broadcast_tensors(y, y[:, :, :1])[1] + y.expand_as(y) + y[:, :, :, None].squeeze(3),
    "std_mean": lambda y: y / (torch.std_mean(y, (2, 3), keepdim=True)[0] + 1) + torch.var_mean(y, 2, keepdim=True)[1],
    "searched": lambda y: (
        y * F.grid_sample(y, y.new_zeros(len(y), 8, 8, 2), mode="nearest", padding_mode="border", align_corners=True)
    ),
    "any_all": lambda y: (
        y * (y > 0.5).any(3, keepdim=True) + y * (y > -1).all(2, keepdim=True) + y.argmax(3, keepdim=True)
    ),
    "count": lambda y: y + (y > 0.5).sum((2, 3), keepdim=True) + y.count_nonzero((2, 3))[..., None, None],
    "renormed": lambda y: (
        y / y.norm(dim=(2, 3), keepdim=True).clamp(min=1) + y / torch.linalg.vector_norm(y, 3, (2, 3), True).add(1)
    ),
    "linalg": lambda y: y + torch.linalg.matrix_norm(y)[..., None, None],
    "trapezoid": lambda y: y * torch.trapezoid(y, dim=3).unsqueeze(3),
}


class Between(Net):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def between(self, y: Tensor) -> Tensor:
        return self.function(y)


for name, layer in LAYERS.items():
    CASES[f"layer_{name}"] = Case(lambda layer=layer: Between(layer()), free=("a.0.weight", "b.0.weight"), small=True)
for name, function in FUNCTIONS.items():
    CASES[f"function_{name}"] = Case(
        lambda function=function: Between(function), free=("a.0.weight", "b.0.weight"), small=True
    )
