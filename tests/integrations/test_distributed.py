"""Training in two processes equals training in one: DDP and FSDP2, for every mechanism."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from attnlab.catalog import registry

WORLD, B, N, D, STEPS = 2, 4, 7, 16, 2


class Blocks(nn.Module):
    """Two layers with residual sums, causal if supported."""

    def __init__(self, name: str) -> None:
        super().__init__()
        kind = registry.load(name)
        options = {"causal": True} if "causal" in kind.card.supports else {}
        self.layers = nn.ModuleList(kind(D, **options) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def train(model: nn.Module, batch: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def compare(actual: nn.Module, expected: nn.Module, what: str) -> None:
    for (name, have), want in zip(actual.named_parameters(), expected.parameters(), strict=True):
        whole = have.full_tensor() if hasattr(have, "full_tensor") else have
        assert (whole - want).abs().max() < 1e-10, f"{what}: {name}"


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    where, hour = f"file://{folder}/meeting", timedelta(hours=1)  # a limit for a hang, not for a slow machine
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=WORLD, timeout=hour)
    mesh = init_device_mesh("cpu", (WORLD,))
    for name in registry.names():
        torch.manual_seed(0)
        start = Blocks(name).double()
        batch = torch.randn(B, N, D, dtype=torch.float64)
        part = batch.chunk(WORLD)[rank]
        single, sharded = deepcopy(start), deepcopy(start)
        unused = name == "dsa"  # its indexer has a loss of its own, and no gradient of the output
        replicated = DistributedDataParallel(deepcopy(start), find_unused_parameters=unused)
        train(single, batch)
        moved = [(a - b).abs().max() for a, b in zip(single.parameters(), start.parameters(), strict=True)]
        assert max(moved) > 1e-3, f"{name} learned nothing"

        train(replicated, part)
        compare(replicated.module, single, f"DDP, {name}")

        for layer in sharded.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert all(p.to_local().numel() < p.numel() for p in sharded.parameters() if p.dim() > 1 and len(p) > 1)
        train(sharded, part)
        compare(sharded, single, f"FSDP2, {name}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path,), nprocs=WORLD)  # raises what a process raises
