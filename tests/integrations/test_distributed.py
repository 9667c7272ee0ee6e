"""Training with two processes equals training with one: DDP and FSDP2, for every mechanism."""

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

WORLD, B, N, D, STEPS = 2, 4, 7, 24, 3


class Blocks(nn.Module):
    """Two layers with residual connections, causal if the mechanism supports it."""

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


def compare(found: nn.Module, expected: nn.Module, start: nn.Module, what: str) -> None:
    moved = 0.0
    for (name, have), want, before in zip(
        found.named_parameters(), expected.parameters(), start.parameters(), strict=True
    ):
        whole = have.full_tensor() if hasattr(have, "full_tensor") else have
        assert (whole - want).abs().max() < 1e-10, f"{what}: {name}"
        moved = max(moved, (want - before).abs().max().item())
    assert moved > 1e-3, f"{what}: nothing was learned"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    where, hour = f"file://{folder}/meeting", timedelta(hours=1)  # a limit for a hang, not for a slow machine
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=WORLD, timeout=hour)
    mesh = init_device_mesh("cpu", (WORLD,))
    for name in registry.names():
        torch.manual_seed(0)
        start = Blocks(name).double()
        batch = torch.randn(B, N, D, dtype=torch.float64)
        own = batch.chunk(WORLD)[rank]
        single, sharded = deepcopy(start), deepcopy(start)
        train(single, batch)

        together = DistributedDataParallel(deepcopy(start))
        train(together, own)
        compare(together.module, single, start, f"DDP, {name}")

        for layer in sharded.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert all(p.to_local().numel() < p.numel() for p in sharded.parameters() if p.dim() > 1 and len(p) > 1)
        train(sharded, own)
        compare(sharded, single, start, f"FSDP2, {name}")
    (Path(folder) / f"done{rank}").touch()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=WORLD)
    assert all((tmp_path / f"done{rank}").exists() for rank in range(WORLD))
