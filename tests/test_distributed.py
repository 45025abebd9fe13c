"""Two processes with half of every batch each come to what one process with whole batches comes to.

All trainings of the two processes are made in one launch, as torchrun would make it.
"""

from __future__ import annotations

import copy
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import zoo
from lightning_fabric import Fabric
from torch import Tensor, nn

import secateur
from secateur.errors import RecipeError
from secateur.methods import get_method
from secateur.training import CheckpointFolder, Settings, fit
from secateur.training.devices import make_fabric
from secateur.training.distill import Distillation
from secateur.training.synchronised import synchronised

CLASSES = 5
TRAINING = [n for n in secateur.list_methods() if get_method(n).needs_training or get_method(n).takes_data]
SCORING = [n for n in secateur.list_methods() if n not in TRAINING]
GATING = [n for n in TRAINING if not get_method(n).prunes]
WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0])
SETTINGS = Settings(epochs=5, optimizer="sgd", lr=0.02, sync_batchnorm=True, checkpoint_minutes=0.0)


class Part:
    """A process's part of batches of four small images, some of whose labels are void, not as many in each.

    Args:
        rank, world: which process, of how many.
        steps: batches in an epoch.
        split: so many come for each of them.
    """

    def __init__(self, rank: int, world: int, steps: int = 4, split: int = 1) -> None:
        self.rank, self.world, self.steps, self.split = rank, world, steps, split

    def __len__(self) -> int:
        return self.steps * self.split

    def whole(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 * epoch + step)
        images = torch.randn(4, 3, 16, 20, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, CLASSES, (4, 16, 20), generator=generator)
        labels[0, 4:], labels[3, :, :7] = 255, 255
        return images, labels

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(start, len(self)):
            images, labels = self.whole(epoch, batch // self.split)
            mine = slice(self.world * (batch % self.split) + self.rank, None, self.world * self.split)
            yield images[mine], labels[mine]


class Normless(nn.Module):
    """Without batch norms, so that it does not matter how a batch is divided."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.first(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("unet").double()


def with_method(name: str, fabric: Fabric) -> tuple[Any, ...]:
    """A network after 20 steps with a method attached: the channels that go, its state, and what the method tells."""
    model = network()
    part = Part(fabric.global_rank, fabric.world_size)
    pruner = methods.attach(name, model, part.whole(0, 0)[0])
    if pruner.method.decides:
        pruner.aim(pruning_ratio=0.4)
    fit(model, part, SETTINGS, fabric, hooks=pruner, class_weights=WEIGHTS)
    told, amount = pruner.log(), {} if pruner.method.decides else {"pruning_ratio": 0.4}
    if not pruner.method.prunes:
        return None, model.state_dict(), {}
    result = pruner.finish(**amount)
    return result.plan.to_json(), result.model.state_dict(), told


def with_average(fabric: Fabric) -> tuple[Any, ...]:
    """A network after 50 steps of ordinary training, and the channels that methods which need no other remove."""
    model, part = network(), Part(fabric.global_rank, fabric.world_size, steps=10)
    fit(model, part, Settings(**{**vars(SETTINGS), "ema": 0.9}), fabric, class_weights=WEIGHTS)
    plans = {}
    for name in SCORING:
        pruner = methods.attach(name, copy.deepcopy(model), part.whole(0, 0)[0])
        plans[name] = pruner.finish(pruning_ratio=0.4).plan.to_json()
    return plans, model.state_dict(), {}


def accumulating(fabric: Fabric, split: int = 2) -> tuple[Any, ...]:
    """Steps of several batches, with distillation."""
    torch.manual_seed(0)
    model, teacher = Normless().double(), Normless().double().requires_grad_(False)
    part = Part(fabric.global_rank, fabric.world_size, split=split)
    settings = Settings(epochs=2, optimizer="sgd", lr=0.1, accumulate=split)
    fit(model, part, settings, fabric, class_weights=WEIGHTS, distillation=Distillation(teacher, 0.3))
    return None, model.state_dict(), {}


def interrupted(fabric: Fabric, out: Path) -> tuple[Any, ...]:
    """Ctrl-C reaches the second of the processes only; then they go on."""

    class Interrupting(Part):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for index, batch in enumerate(super().epoch(epoch, start), start):
                if self.rank == 1 and (epoch, index) == (0, 3):
                    signal.raise_signal(signal.SIGINT)
                yield batch

    stopped, settings = None, Settings(**{**vars(SETTINGS), "epochs": 1, "ema": 0.9})
    for loader in (Interrupting, Part):
        model, checkpoints = network(), CheckpointFolder(out / "interrupted")
        try:
            fit(model, loader(fabric.global_rank, fabric.world_size), settings, fabric, checkpoints=checkpoints)
        except KeyboardInterrupt:
            fabric.barrier()
            stopped = [file.name for file in checkpoints.files()][-1:]
    return stopped, model.state_dict(), {}


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "cumulative, not affine": (lambda: nn.BatchNorm2d(3, momentum=None, affine=False), (4, 3, 5, 6)),
    "of vectors, without statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), (4, 3)),
    "of volumes": (lambda: nn.BatchNorm3d(3, eps=0.1, momentum=0.4), (4, 3, 2, 3, 2)),
    "frozen": (lambda: nn.BatchNorm2d(3).eval(), (4, 3, 5, 6)),
}


def normed(name: str, rank: int, world: int) -> tuple[Any, ...]:
    """Two forward and backward passes of a batch norm over a part of a batch far from zero: what it puts out, the
    gradients of its input, and its state with the sums of its parameters' gradients over all parts."""
    make, shape = NORMS[name]
    torch.manual_seed(3)
    norm, outputs = make().double(), []
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1)
    with synchronised(norm):
        for _ in range(2):
            x = (50 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
            y = norm(x[rank::world])
            weights = torch.randn(shape, dtype=torch.float64)
            (y * weights[rank::world]).sum().backward()
            assert x.grad is not None
            outputs += [y.detach(), x.grad[rank::world]]
    for parameter in norm.parameters():
        assert parameter.grad is not None
        if world > 1:
            dist.all_reduce(parameter.grad)
    gradients = {f"{key}.grad": parameter.grad for key, parameter in norm.named_parameters()}
    return outputs, {**norm.state_dict(), **gradients}, "forward" in vars(norm)


def under_torchrun(rank: int, world: int, port: int) -> None:
    """Makes this process look like one that torchrun has started."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", GROUP_RANK="0",
    )  # fmt: skip


def worker(rank: int, world: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    under_torchrun(rank, world, port)
    fabric = make_fabric("cpu")
    fabric.launch()
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        work: dict[str, Callable[[], tuple[Any, ...]]] = {
            **{name: lambda name=name: with_method(name, fabric) for name in TRAINING},
            "average": lambda: with_average(fabric),
            "accumulating": lambda: accumulating(fabric),
            "interrupted": lambda: interrupted(fabric, out),
            **{f"norm {name}": lambda name=name: normed(name, rank, world) for name in NORMS},
        }
        for name, result in work.items():
            torch.save(result(), out / f"{name}-{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What each of the two processes came to, by what they did."""
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(2, port, out), nprocs=2)
    return lambda name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(2)]


@pytest.fixture
def alone() -> Fabric:
    return make_fabric("cpu")


def check_as_one(both: list[Any], alone: tuple[Any, ...]) -> None:
    """The same channels and, to 1e-5, the same weights; and the processes themselves have not drifted apart at all."""
    for chosen, state, told in both:
        assert chosen == alone[0]
        torch.testing.assert_close(state, alone[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(told, alone[2], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, both[1][1][name]) for name, value in both[0][1].items())


@pytest.mark.parametrize("method", [name for name in TRAINING if name not in GATING])
def test_two_processes_train_with_a_method_as_one_does(processes: Any, method: str, alone: Fabric) -> None:
    expected = with_method(method, alone)
    assert any(not torch.equal(value, network().state_dict()[name]) for name, value in expected[1].items())
    check_as_one(processes(method), expected)


@pytest.mark.parametrize("method", GATING)
def test_gates_that_see_their_own_part_of_a_batch_leave_the_processes_alike(processes: Any, method: str) -> None:
    (_, first, _), (_, second, _) = processes(method)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_train_average_and_score_as_one_does(processes: Any, alone: Fabric) -> None:
    expected = with_average(alone)
    assert set(expected[0]) | set(TRAINING) == set(secateur.list_methods())
    check_as_one(processes("average"), expected)


def test_batches_are_accumulated_to_the_step_of_the_whole_batch(processes: Any, alone: Fabric) -> None:
    whole = accumulating(alone, split=1)
    check_as_one(processes("accumulating"), whole)
    for split in (2, 4):
        torch.testing.assert_close(accumulating(alone, split)[1], whole[1], rtol=1e-5, atol=1e-6)


def test_processes_stop_behind_the_same_step_when_one_is_interrupted(processes: Any, alone: Fabric) -> None:
    both = processes("interrupted")
    assert both[0][0] == both[1][0] == ["step-00000004.safetensors"]
    model = network()
    fit(model, Part(0, 1), Settings(**{**vars(SETTINGS), "epochs": 1, "ema": 0.9}), alone)
    check_as_one([(None, state, told) for _, state, told in both], (None, model.state_dict(), {}))


@pytest.mark.parametrize("name", NORMS)
def test_a_synchronised_norm_is_the_norm_of_the_whole_batch(processes: Any, name: str) -> None:
    outputs, state, _ = normed(name, 0, 1)
    for rank, (own, own_state, marked) in enumerate(processes(f"norm {name}")):
        assert not marked  # it is as it was
        torch.testing.assert_close(own, [whole[rank::2] for whole in outputs], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own_state, state, rtol=1e-9, atol=1e-9)


def test_another_number_of_devices_than_torchrun_has_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    under_torchrun(0, 2, 1)
    with pytest.raises(RecipeError, match=r"run.devices=3, but torchrun has started 2"):
        make_fabric("cpu", devices=3)
