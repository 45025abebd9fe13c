"""Two processes with half of the batch each come to what one process with the whole batch comes to, for every method.

Batch norms keep their statistics fixed here: with statistics of half a batch, two processes compute something else than
one whatever the method does.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import zoo
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur

STEPS, EPOCHS = 3, 3


def trained(method: str, rank: int = 0, world: int = 1) -> tuple[secateur.Result, dict[str, Any]]:
    """A U-Net after a few epochs with the method attached; this process sees its part of every batch."""
    torch.manual_seed(0)
    model = zoo.build("unet").double().train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(EPOCHS * STEPS, 4, 3, 16, 20, generator=generator, dtype=torch.float64)
    pruner = methods.attach(method, model, images[0])
    if pruner.method.decides:
        pruner.aim(pruning_ratio=0.4)
    pruner.begin(steps=EPOCHS * STEPS, lr_sum=0.01 * EPOCHS * STEPS, epochs=EPOCHS)
    labels = torch.randint(0, 4, (EPOCHS * STEPS, 4, 16, 20), generator=generator)
    network: nn.Module = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    part = slice(rank * 4 // world, (rank + 1) * 4 // world)
    logs: dict[str, Any] = {}
    for epoch in range(EPOCHS):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            optimizer.zero_grad()
            loss: Tensor = methods.loss_of(network(images[step, part]), labels[step, part])
            loss.backward()
            pruner.after_backward()
            optimizer.step()
            pruner.after_step(0.01)
        pruner.after_epoch(epoch)
        logs = pruner.log()
    return pruner.finish(**({} if pruner.method.decides else {"pruning_ratio": 0.4})), logs


def worker(rank: int, world: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        for method in methods.PRUNING:
            result, logs = trained(method, rank, world)
            torch.save((result.plan.to_json(), result.model.state_dict(), logs), Path(out, f"{method}-{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(2, port, str(out)), nprocs=2)
    return out


@pytest.mark.parametrize("method", methods.PRUNING)
def test_two_processes_are_as_one(of_two_processes: Path, method: str) -> None:
    alone, logs = trained(method)
    both = [torch.load(of_two_processes / f"{method}-{rank}.pt") for rank in range(2)]
    for plan, state, told in both:
        assert plan == alone.plan.to_json()
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
        assert told == pytest.approx(logs, rel=1e-9, abs=1e-11)
    for name, value in both[0][1].items():
        assert torch.equal(value, both[1][1][name])  # the ranks themselves do not drift apart
