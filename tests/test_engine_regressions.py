"""What the engine once got wrong, one small network each."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import secateur
from secateur.errors import ModelError


class Between(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = zoo.conv_bn(3, 8), zoo.conv_bn(8, 8), nn.Conv2d(8, 4, 1)
        self.make()

    def make(self) -> None:
        """The layers between."""

    def between(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(x))))


def pruned(model: nn.Module) -> secateur.Result:
    """Pruned by half in float64, exactly, without a group that only the verification refused; the network as it was."""
    model = zoo.randomise(model).double().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = secateur.prune(model, zoo.example().double(), method="random", pruning_ratio=0.5)
    assert result.report is not None and result.report.ok and result.report.relative_error <= 1e-12
    assert not [text for text in result.warnings if "failed verification" in text]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return result


def reason(result: secateur.Result, tensor: str, dim: int = 0) -> str | None:
    """Why the group of a tensor's dimension is pinned."""
    return next(group.pinned for group in result.graph.groups if (tensor, dim) in group.members)


# -- the network that was traced is left as it was --------------------------------------------------------------------


def test_what_a_forward_pass_keeps_in_modules_is_forgotten() -> None:
    """A grid cached while running on meta tensors broke the network."""

    class Caching(Between):
        def make(self) -> None:
            self.grid, self.cache, self.seen, self.calls = None, {}, [], 0

        def between(self, y: Tensor) -> Tensor:
            if self.grid is None:
                self.grid = torch.full(y.shape[2:], 2.0, dtype=y.dtype, device=y.device)
            if y.shape[2:] not in self.cache:
                self.cache[y.shape[2:]] = self.grid * 2
            self.seen.append(y)
            self.calls += 1
            return y * self.grid + self.cache[y.shape[2:]]

    model = Caching()
    small = pruned(model).model
    for network in (model, small):
        assert network.grid is None and network.cache == {} and network.seen == [] and network.calls == 0
        network(zoo.example().double())


def test_buffers_that_forward_registers_are_forgotten() -> None:
    class Registering(Between):
        def between(self, y: Tensor) -> Tensor:
            if not hasattr(self, "ramp"):
                ramp = torch.linspace(0, 1, y.shape[-1], dtype=y.dtype, device=y.device)
                self.register_buffer("ramp", ramp, persistent=False)
            return y * self.ramp

    model = Registering()
    pruned(model)
    assert not hasattr(model, "ramp")


def test_spectral_norm_keeps_its_vectors() -> None:
    """In float64 the verification's random weights shared memory with the network's own buffers."""

    class Spectral(Between):
        def make(self) -> None:
            self.c = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))

        def between(self, y: Tensor) -> Tensor:
            return torch.relu(self.c(y))

    result = pruned(Spectral())
    assert reason(result, "c.parametrizations.weight.original") is None
    conv = result.model.c
    assert conv.out_channels == conv.weight.shape[0] < 8


def test_the_example_input_is_not_written_into() -> None:
    class Centring(Between):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(x.mean().item())  # reads a value: traced on real tensors
            return super().forward(x)

    x = zoo.example()
    before = x.clone()
    assert secateur.prune(zoo.randomise(Centring()), x, pruning_ratio=0.5).report.ok
    assert torch.equal(x, before)


# -- parts that can't be swapped, wrappers ----------------------------------------------------------------------------


def test_a_torchscript_part_stays_and_the_rest_is_pruned() -> None:
    class Scripted(Between):
        def make(self) -> None:
            self.c = torch.jit.script(zoo.conv_bn(8, 8))

        def between(self, y: Tensor) -> Tensor:
            return self.c(y)

    model = Scripted()
    result = pruned(model)
    assert result.model.b[0].out_channels < 8
    assert "fixed" in (reason(result, "a.0.weight") or "")


def test_a_torchscript_part_is_saved_with_the_rest(tmp_path) -> None:
    class Scripted(Between):
        def make(self) -> None:
            self.c = torch.jit.script(zoo.conv_bn(8, 8))

        def between(self, y: Tensor) -> Tensor:
            return self.c(y)

    result = pruned(Scripted())
    secateur.save(tmp_path / "small.safetensors", result.model, result.plan)
    loaded = secateur.load(tmp_path / "small.safetensors", Scripted().double()).eval()
    x = zoo.example().double()
    assert torch.equal(loaded(x), result.model.eval()(x))


def test_torchscript_itself_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="prune the Python network that it was made of"):
        secateur.trace(torch.jit.script(zoo.conv_bn(3, 8)), zoo.example())


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "AveragedModel": AveragedModel,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "Fabric": lambda model: Fabric(accelerator="cpu").setup(model),
    "twice": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.usefixtures("one_process")
def test_of_a_wrapped_network_the_network_inside_is_pruned(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain = Between()
    wrapped = wrap(copy.deepcopy(plain))
    result, expected = pruned(wrapped), pruned(plain)
    assert type(result.model) is Between and result.plan == expected.plan
    assert type(secateur.apply(wrapped, expected.plan)) is Between
    assert secateur.verify(wrapped, wrap(copy.deepcopy(result.model)), result.plan, zoo.example().double()).ok


def test_a_moving_average_is_cut_along() -> None:
    model = zoo.conv_bn(3, 8).append(nn.Conv2d(8, 4, 1))
    average = AveragedModel(model)
    average.update_parameters(model)
    result = secateur.prune(model, zoo.example(), pruning_ratio=0.5, inplace=True)
    secateur.apply(average, result.plan, inplace=True)
    average.update_parameters(result.model)
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
    assert average(zoo.example()).shape == model(zoo.example()).shape


def test_inference_mode_inside_forward() -> None:
    class Inference(Between):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    assert pruned(Inference()).model.b[0].out_channels < 8


def test_a_lazy_layer_is_refused_with_the_way_out() -> None:
    class Lazy(Between):
        def make(self) -> None:
            self.lazy = nn.LazyConv2d(8, 1)

        def between(self, y: Tensor) -> Tensor:
            return self.lazy(y)

    with pytest.raises(ModelError, match=r"lazy.weight has no shape yet; run the network once"):
        secateur.trace(Lazy(), zoo.example())


def test_infinities_in_the_output_are_compared_too() -> None:
    class Masking(Between):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(x[:, :1] < 0, float("-inf"))

    pruned(Masking())


def test_noise_of_a_given_size_follows_the_channels() -> None:
    class Noisy(Between):
        def between(self, y: Tensor) -> Tensor:
            return y + torch.normal(0.0, 0.1, y.shape, dtype=y.dtype, device=y.device)

    assert reason(pruned(Noisy()), "a.0.weight") is None


# -- labels -----------------------------------------------------------------------------------------------------------


def test_constants_written_at_chosen_channels_fix_them() -> None:
    class Masked(Between):
        def make(self) -> None:
            self.c = zoo.conv_bn(8, 8)

        def between(self, y: Tensor) -> Tensor:
            mask = torch.zeros(y.shape[1], dtype=y.dtype, device=y.device)
            mask[2] = 1
            mask[4:] = 0.5
            return self.c(y * mask[:, None, None])

    assert "fixed" in (reason(pruned(Masked()), "a.0.weight") or "")


def test_maps_written_side_by_side_stay_prunable() -> None:
    result = pruned(zoo.NETWORKS["written"]())
    for tensor in ("a.0.weight", "b.0.weight", "c.0.weight"):
        assert reason(result, tensor) is None


def test_scattered_ones_fix_their_channels() -> None:
    class OneHot(Between):
        def between(self, y: Tensor) -> Tensor:
            mask = torch.zeros(y.shape[:2], dtype=y.dtype, device=y.device)
            mask.scatter_(1, torch.full((y.shape[0], 1), 3, device=y.device), 1.0)
            return y * mask[:, :, None, None]

    assert "fixed" in (reason(pruned(OneHot()), "a.0.weight") or "")


@pytest.mark.parametrize("how", ["expand", "repeat", "buffer"])
def test_a_filter_made_on_the_fly_follows_the_channels(how: str) -> None:
    """Blurring: one kernel for every channel, as many groups as channels."""

    class Blur(Between):
        def make(self) -> None:
            self.register_buffer("kernel", torch.rand(8 if how == "buffer" else 1, 1, 3, 3))

        def between(self, y: Tensor) -> Tensor:
            kernel = self.kernel
            if how == "expand":
                kernel = kernel.expand(y.shape[1], -1, -1, -1)
            elif how == "repeat":
                kernel = kernel.repeat(y.shape[1], 1, 1, 1)
            return F.conv2d(y, kernel, stride=2, groups=y.shape[1])

    assert reason(pruned(Blur()), "a.0.weight") is None


def test_groups_written_in_the_code_are_found_by_the_trial() -> None:
    class Literal(Between):
        def make(self) -> None:
            self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))

        def between(self, y: Tensor) -> Tensor:
            return F.conv2d(y, self.weight, padding=1, groups=8)

    assert "a size is written in the code" in (reason(pruned(Literal()), "a.0.weight") or "")


def test_groups_of_a_layer_whose_weight_another_uses() -> None:
    class Borrowing(Between):
        def make(self) -> None:
            self.depth = nn.Conv2d(8, 8, 3, groups=8)

        def between(self, y: Tensor) -> Tensor:
            return F.conv2d(y, self.depth.weight, self.depth.bias, padding=1, groups=self.depth.groups)

    result = pruned(Borrowing())
    depth = result.model.depth
    assert depth.groups == depth.in_channels == depth.out_channels == depth.weight.shape[0] < 8


def test_depthwise_transposed_convolution_with_several_outputs_a_channel() -> None:
    class Up(Between):
        def make(self) -> None:
            self.up, self.mix = nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=8), nn.Conv2d(16, 8, 1)

        def between(self, y: Tensor) -> Tensor:
            return F.avg_pool2d(self.mix(self.up(y)), 2)

    up = pruned(Up()).model.up
    assert up.groups == up.in_channels == up.weight.shape[0] < 8
    assert up.out_channels == 2 * up.in_channels == len(up.bias)


def test_standardisation_by_batch_norm_fixes_the_inputs_of_a_filter() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)

    class Between2(Between):
        def make(self) -> None:
            self.c = Standardised(8, 8, 3)

        def between(self, y: Tensor) -> Tensor:
            return self.c(y)

    result = pruned(Between2())
    assert "normalised over by a batch norm" in (reason(result, "c.weight", 1) or "")
    assert reason(result, "c.weight") is None


def test_a_view_of_what_is_written_into_is_no_longer_zero() -> None:
    """The sum over channels is taken through a view made before the map was shifted."""

    class Viewed(Between):
        def between(self, y: Tensor) -> Tensor:
            y = y.clone()
            half = y.shape[1] // 2
            first, second = y[:, :half], y[:, half:]
            y += 1.0
            return y * (first + second).sum(1, keepdim=True)

    assert "sum over this dimension" in (reason(pruned(Viewed()), "a.0.weight") or "")


def test_normalisations_without_tensors_tell_the_truth() -> None:
    class Bare(Between):
        def make(self) -> None:
            self.c, self.instance = nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8)
            self.d, self.group = nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(4, 12, affine=False)
            self.e = nn.Conv2d(12, 8, 1)

        def between(self, y: Tensor) -> Tensor:
            return self.e(self.group(self.d(self.instance(self.c(y)))))

    small = pruned(Bare()).model
    assert small.instance.num_features == small.c.out_channels < 8
    assert small.group.num_channels == small.d.out_channels == 3 * small.group.num_groups


@pytest.mark.parametrize("module", [nn.GLU(1), nn.ChannelShuffle(2), nn.Unfold(1)])
def test_rules_for(module: nn.Module) -> None:
    class With(Between):
        def make(self) -> None:
            self.wide, self.module = nn.Conv2d(8, 16, 1), module
            self.narrow = nn.Conv2d(8 if isinstance(module, nn.GLU) else 16, 8, 1)

        def between(self, y: Tensor) -> Tensor:
            return self.narrow(self.module(self.wide(y)).reshape(y.shape[0], -1, *y.shape[2:]))

    result = pruned(With())
    assert reason(result, "wide.weight") is None and result.model.wide.out_channels < 16


def test_indices_fix_only_the_dimension_that_they_pick_from() -> None:
    class Picking(Between):
        def make(self) -> None:
            self.register_buffer("rows", torch.tensor([0, 2, 5]))
            self.register_buffer("order", torch.randperm(8))
            self.c = zoo.conv_bn(8, 8)

        def between(self, y: Tensor) -> Tensor:
            return self.c(y[:, :, self.rows])[:, self.order].index_select(2, self.rows[:2])

    result = pruned(Picking())
    assert reason(result, "a.0.weight") is None
    assert "picked by index" in (reason(result, "c.0.weight") or "")


def test_sizes_that_agree_only_if_two_groups_shrink_alike() -> None:
    """A third of both groups gone agrees by chance, another share of each does not: they are tied."""

    class Windows(Between):
        def make(self) -> None:
            self.linear, self.c = nn.Linear(8, 8), zoo.conv_bn(8, 8)

        def between(self, y: Tensor) -> Tensor:
            n, c, h, w = y.shape
            t = self.linear(y.permute(0, 2, 3, 1).reshape(n, h * w, c))
            return self.c(t.reshape(n, h, w, c).permute(0, 3, 1, 2))

    result = pruned(Windows())
    assert reason(result, "a.0.weight") is None
    assert result.model.linear.out_features == result.model.a[0].out_channels < 8


def test_a_rule_that_cannot_read_its_operator_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.graph.rules import RULES

    def broken(flow, node) -> None:
        raise IndexError("no such argument")

    monkeypatch.setitem(RULES, "silu", broken)

    class Silu(Between):
        def between(self, y: Tensor) -> Tensor:
            return F.silu(y)

    result = pruned(Silu())
    assert "rule for silu" in (reason(result, "a.0.weight") or "")
    assert reason(result, "b.0.weight") is None


class Chaotic(nn.Module):
    """Multiplies a rounding error by ten thousand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.b(torch.relu(self.a(x))))
        for _ in range(20):
            x = 3.9 * x * (1 - x)
        return self.c(x)


def test_rounding_errors_that_the_network_multiplies_are_not_taken_for_a_wrong_cut() -> None:
    torch.manual_seed(0)
    model, x = Chaotic().double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    result = secateur.prune(model, x, pruning_ratio=0.5)
    assert result.report.relative_error > 1e-12 and not result.warnings
    with torch.no_grad():
        result.model.c.weight *= 1 + 1e-6
    assert not secateur.verify(model, result.model, result.plan, x).ok


def test_what_cannot_be_compared_is_said_so() -> None:
    class Fails(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.device.type == "meta" else y[torch.tensor([9])]

    layers = zoo.conv_bn(3, 8), nn.Conv2d(8, 4, 1)
    with pytest.raises(ModelError, match="itself fails in eval mode"):
        secateur.prune(Fails(*layers), zoo.example(), pruning_ratio=0.5)
    with pytest.raises(ModelError, match="gives empty outputs"):
        secateur.prune(nn.Sequential(*layers), zoo.example()[:0], pruning_ratio=0.5)
    with pytest.raises(ModelError, match="without data"):
        secateur.prune(nn.Sequential(*layers).to("meta"), zoo.example(), method="random", pruning_ratio=0.5)


def test_a_parameter_without_elements() -> None:
    class Empty(Between):
        def make(self) -> None:
            self.c = zoo.conv_bn(8, 8)
            self.prompts = nn.Parameter(torch.zeros(0, 8))

        def between(self, y: Tensor) -> Tensor:
            return self.c(y) + self.prompts.sum()

    pruned(Empty())


def test_values_read_in_train_mode_only() -> None:
    class Reads(Between):
        def make(self) -> None:
            self.c, self.auxiliary = zoo.conv_bn(8, 8), nn.Conv2d(8, 8, 1)

        def between(self, y: Tensor) -> Tensor:
            if self.training and self.auxiliary(y).abs().sum().item() > 1e9:
                y = y + 1
            return self.c(y)

    assert not pruned(Reads()).graph.notes


def test_chances_of_python_and_numpy_are_the_same_in_every_run() -> None:
    class Chance(Between):
        def make(self) -> None:
            self.c = zoo.conv_bn(8, 8)

        def between(self, y: Tensor) -> Tensor:
            return self.c(y * random.random() if self.training else y)

    random.seed(7)
    expected = random.random()
    random.seed(7)
    pruned(Chance())
    assert random.random() == expected


def test_buffers_that_a_state_dict_does_not_hold_shrink_along() -> None:
    class Blur(Between):
        def make(self) -> None:
            self.register_buffer("filter", torch.rand(8, 1, 3, 3), persistent=False)
            self.c = zoo.conv_bn(8, 8)

        def between(self, y: Tensor) -> Tensor:
            return self.c(F.conv2d(y, self.filter, groups=y.shape[1]))

    result = pruned(Blur())
    assert len(result.model.filter) == result.model.a[0].out_channels < 8
    assert result.plan.removed.keys() <= Blur().state_dict().keys() and result.plan.unsaved.keys() == {"filter"}
    assert secateur.Plan.from_json(result.plan.to_json()) == result.plan
