"""Several processes that train one network, started by ``torchrun``: DDP, or FSDP2 with ``--fsdp``.

Every process holds all the data, draws the same order of examples from the seed, and takes its part of each batch. The
first process (rank 0) alone reads and writes the folder of the run, and its checkpoints are those of one process.
Everything that decides how the loop goes on (a loss, a metric, a signal, the time of a checkpoint) is exchanged first,
so that no process waits for one that has left the loop.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from attnlab.network import Network
from attnlab.tasks.base import Split
from attnlab.utils.errors import UserError

POLL_SECONDS = 0.05
"""Between two looks for a message; a blocking wait would ignore signals."""
END_SECONDS = 20
"""The longest wait of the first process for the others to end, so that all end with the same exit code."""
State = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors and the description of a checkpoint."""


class LostProcessError(UserError):
    """Another process ended, or cannot be reached."""


class Share(NamedTuple):
    """The part of a batch that one process takes.

    The sum of its losses times ``loss`` is its part of the batch's mean loss. ``tokens`` is its fraction of the real
    tokens, and so the weight of its auxiliary losses, which are means over them.
    """

    examples: Split
    loss: Tensor
    tokens: Tensor


@dataclass
class Processes:
    """The processes of a run, as one of them sees them; without arguments, the only one.

    ``local_rank`` is the number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    _store: Any = field(default=None, repr=False)
    _messages: int = field(default=0, repr=False)
    _joined: bool = field(default=False, repr=False)

    @staticmethod
    def connect() -> Processes:
        """The processes that torchrun started; they can exchange messages, and tensors after `join`."""
        try:
            store, rank, size = next(rendezvous("env://"))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot connect to the other processes ({reason}); start them with torchrun") from None
        return Processes(rank, size, int(os.environ.get("LOCAL_RANK", rank)), store)

    # Messages before training, and after an error

    def send(self, message: dict[str, Any]) -> None:
        """Send JSON values from the first process to the others."""
        self._store.set(f"attnlab/message/{self._messages}", json.dumps(message))
        self._messages += 1

    def receive(self) -> dict[str, Any]:
        """The next message of the first process; waits for it."""
        key = f"attnlab/message/{self._messages}"
        with self.connected():
            while not self._store.check([key]):
                time.sleep(POLL_SECONDS)
            message: dict[str, Any] = json.loads(self._store.get(key))
        self._messages += 1
        return message

    def end(self, code: int) -> None:
        """Tell the other processes that this one ends; the first waits for those that it has not trained with."""
        with suppress(RuntimeError):  # the store ended with its process
            if self.rank:
                self._store.add("attnlab/ended", 1)
                return
            self.send({"exit": code})
            until = time.monotonic() + END_SECONDS
            while not self._joined and self._store.add("attnlab/ended", 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(POLL_SECONDS)

    def is_first_to_fail(self) -> bool:
        """Whether no other process has reported an error, so that this one reports it."""
        try:
            return bool(self._store.add("attnlab/errors", 1) == 1)
        except RuntimeError:  # the store ended with its process
            return True

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Turn a failed connection into a `LostProcessError`."""
        try:
            yield
        except RuntimeError as error:
            failed = re.search(r"gloo|NCCL|Connection \w+ by peer", str(error))
            if self.size == 1 or not (failed or isinstance(error, distributed.DistError)):
                raise
            raise LostProcessError("another process of this run ended or cannot be reached") from error

    # Training

    def join(self, device: torch.device) -> None:
        """Wait for the other processes, and connect with them to train on ``device``, until the process ends.

        The group is never destroyed: its destructor holds the GIL, and may wait for a thread of gloo that needs it.
        """
        if self.size == 1:
            return
        self._store.add("attnlab/ready", 1)
        while self._store.add("attnlab/ready", 0) < self.size:
            if self._store.add("attnlab/errors", 0):
                raise LostProcessError("another process of this run cannot start")
            time.sleep(POLL_SECONDS)
        self._joined = True
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)

    def shard(self, network: Network) -> None:
        """Shard the parameters of a network in place with FSDP2: each block, and the rest."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes half a second

        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # about an output that is a view, and only read
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, 0)
        mesh = init_device_mesh(next(network.parameters()).device.type, (self.size,))
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def replicate(self, module: nn.Module) -> nn.Module:
        """``module`` with DDP, which averages the gradients; a parameter may have none."""
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, static_graph=True)

    def part(self, length: int) -> slice:
        """The part of ``length`` rows that this process takes; parts differ by one row at most."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)

    def longest_part(self, length: int) -> int:
        """The number of rows in the longest part."""
        return -(-length // self.size)

    def share(self, examples: Split, rows: Tensor, weight: Callable[[Tensor], Tensor]) -> Share:
        """The part of this process in the batch ``rows``; ``weight`` is the divisor of the summed loss of targets.

        A process without rows takes one with weight 0, because it has to take part in the average.
        """
        own = rows[self.part(len(rows))]
        factor = 1 if len(own) else 0
        batch = examples.take(own if len(own) else rows[:1])
        if examples.lengths is None or batch.lengths is None:
            tokens = torch.tensor(len(own) / len(rows), dtype=torch.float64)
        else:
            tokens = factor * batch.lengths.sum().double() / examples.lengths[rows].sum()
        return Share(batch, factor / weight(examples.y[rows]), tokens)

    def dropout_seed(self, seed: int, step: int) -> int:
        """The seed of dropout in this process at a step, so that no checkpoint needs the random state of the others."""
        return ((seed * 1_000_003 + step + 2**32) * self.size + self.rank) % 2**63

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every process, by rank."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        return [each.tolist() for each in everyone]

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set."""
        return any(each for (each,) in self.exchange([flag]))

    def concatenate(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each CPU tensor concatenated over the processes, by rank."""
        if self.size == 1:
            return list(parts)
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, list(parts))
        return [torch.cat(tensors) for tensors in zip(*everyone, strict=True)]

    # Checkpoints

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors without sharding, in the first process; the others take part and get none."""
        if self.size == 1:
            return tensors
        gathered = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if self.rank == 0:
                gathered[name] = full.detach().cpu()
        return gathered

    def broadcast(self, state: State | None) -> State | None:
        """The checkpoint of the first process, on the CPU; None if it has none."""
        if self.size == 1:
            return state
        about: list[Any] = [None]
        if state is not None:
            about = [(state[1], {name: (tensor.shape, tensor.dtype) for name, tensor in state[0].items()})]
        distributed.broadcast_object_list(about)
        if about[0] is None:
            return None
        description, shapes = about[0]
        tensors = {} if state is None else state[0]
        for name, (shape, dtype) in shapes.items():
            tensors[name] = tensors[name].contiguous() if self.rank == 0 else torch.empty(shape, dtype=dtype)
            distributed.broadcast(tensors[name], 0)
        return tensors, description


def sharded_as(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor, sharded if ``like`` is; every process has the whole tensor."""
    if like is None or not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


ALONE = Processes()
"""A run in one process."""
