"""Device, threads, memory and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small import refused

from attnlab.training import hardware
from attnlab.training.distributed import Processes
from attnlab.training.settings import Hardware
from attnlab.utils.errors import UserError


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_auto_selects_the_fastest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((["cpu"], "cpu"), (["cpu", "mps"], "mps"), (["cpu", "cuda:0", "cuda:1"], "cuda:0")):
        monkeypatch.setattr(hardware, "available", lambda there=there: there)
        assert str(hardware.device("auto")) == expected
    assert str(hardware.device("cuda")) == "cuda:0"
    assert str(hardware.device("cuda:1")) == "cuda:1"


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(local_rank: int, name: str = "auto", **options: Any) -> str:
        return str(hardware.prepare(Hardware(device=name, **options), Processes(local_rank, 3, local_rank)))

    monkeypatch.setattr(hardware, "available", lambda: ["cpu", "mps"])
    assert device(1) == device(1, "cpu") == "cpu"
    monkeypatch.setattr(hardware, "available", lambda: ["cpu", "cuda:0", "cuda:1"])
    assert [device(0), device(1), device(1, "cuda"), device(1, "cpu")] == ["cuda:0", "cuda:1", "cuda:1", "cpu"]
    refused("every process needs a GPU, but this machine has 2", device, 2)
    refused("--device cuda:1 is for one process", device, 1, "cuda:1")
    refused("--fsdp does not support float16", device, 1, fsdp=True, precision="float16")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:cpu", "meta", "cuda:-1"])
def test_unavailable_device_lists_available_ones(name: str) -> None:
    refused("available: auto, cpu", hardware.device, name)


def test_number_of_threads_by_step_size() -> None:
    torch.set_num_threads(2)
    hardware.set_threads(Hardware(), parameters=100_000_000, tokens=1_000)
    assert torch.get_num_threads() == 2
    hardware.set_threads(Hardware(), parameters=10_000, tokens=1_000)
    assert torch.get_num_threads() == 1
    hardware.set_threads(Hardware(threads=2), parameters=10_000, tokens=1_000)
    assert torch.get_num_threads() == 2


def test_network_larger_than_memory_is_refused_before_allocation() -> None:
    cpu = torch.device("cpu")
    hardware.check_memory(1_000_000, "float32", cpu)
    refused("on cpu; reduce --embed_dim or --layers", hardware.check_memory, 10**12, "float32", cpu)
    refused("need 14,901 GiB to train, but there are ", hardware.check_memory, 10**12, "float32", cpu)
    refused("need 29,802 GiB to train, but there are ", hardware.check_memory, 10**12, "float64", cpu)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "fails",
    [
        lambda: fail(MemoryError()),
        lambda: fail(torch.OutOfMemoryError("CUDA out of memory")),
        lambda: fail(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")),
        lambda: torch.empty(2**50, dtype=torch.uint8),
    ],
)
def test_out_of_memory_gives_advice(fails: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"out of memory; reduce --batch_size \(7 now\)"), hardware.memory_advice(7):
        fails()


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match=r"a bug"), hardware.memory_advice(7):
        raise RuntimeError("a bug")


def test_autocast_only_if_requested() -> None:
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float32), ("bfloat16", torch.bfloat16)):
        with hardware.autocast(Hardware(precision=precision), torch.device("cpu")):  # type: ignore[arg-type]
            assert (torch.ones(2, 3) @ torch.ones(3, 2)).dtype == dtype
