"""Device, threads and precision of a run."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from attnlab.training.distributed import ALONE, Processes
from attnlab.training.settings import Hardware
from attnlab.utils.errors import UserError

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def device(name: str) -> torch.device:
    """The device ``name``; ``auto`` is the fastest that is available."""
    devices = available()
    if name == "auto":
        return torch.device(next((d for d in ("cuda:0", "mps") if d in devices), "cpu"))
    try:
        resolved = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; available: auto, {', '.join(devices)}") from None
    if resolved.type == "cuda" and resolved.index is None:
        resolved = torch.device("cuda:0")
    if str(resolved) not in devices:
        raise UserError(f"device {name!r} is not available; available: auto, {', '.join(devices)}")
    return resolved


def own_device(hardware: Hardware, local_rank: int) -> torch.device:
    """The device of one of several processes: a GPU of its own, or the CPU."""
    name, gpus = hardware.device, sum(name.startswith("cuda") for name in available())
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name} is for one process; with several, give cuda (one GPU for each) or cpu")
    if hardware.fsdp and hardware.precision == "float16":
        raise UserError("--fsdp does not support float16, whose gradients are scaled; use --precision bfloat16")
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if local_rank >= gpus:
        raise UserError(
            f"every process needs a GPU, but this machine has {gpus}; start fewer processes on it, or give --device cpu"
        )
    return torch.device("cuda", local_rank)


def available() -> list[str]:
    """The available devices."""
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*there, "mps"] if torch.backends.mps.is_available() else there


SMALL_STEP = 2e9
"""A step of fewer operations is faster on one thread, because of the cost of synchronization."""


def set_threads(hardware: Hardware, parameters: int, tokens: int) -> None:
    """Set the number of threads; by default one for a small step and PyTorch's default for a large one."""
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    elif 6 * parameters * tokens < SMALL_STEP:  # 2 to multiply and add forward, twice that backward
        torch.set_num_threads(1)


def prepare(hardware: Hardware, processes: Processes = ALONE) -> torch.device:
    """The device of this process, checked together with the precision."""
    resolved = device(hardware.device) if processes.local_rank is None else own_device(hardware, processes.local_rank)
    if hardware.precision == "float64" and resolved.type == "mps":
        raise UserError("mps has no float64; use --precision float32 or --device cpu")
    return resolved


def warnings(hardware: Hardware, on: torch.device) -> list[str]:
    """Warnings about slow settings."""
    if on.type == "cpu" and hardware.precision in PRECISIONS and not _native(hardware.precision):
        return [f"this CPU computes {hardware.precision} by emulation, many times slower than float32"]
    return []


def autocast(hardware: Hardware, on: torch.device) -> AbstractContextManager[Any]:
    """The context of the forward passes."""
    dtype = PRECISIONS.get(hardware.precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(on.type, dtype=dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory cannot be allocated."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or bool(re.search("not enough memory|can't allocate memory", str(error), re.IGNORECASE))


@contextlib.contextmanager
def memory_advice(batch_size: int) -> Iterator[None]:
    """Turn out-of-memory errors into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory; reduce --batch_size ({batch_size} now), --seq_length, --embed_dim or --layers"
        ) from error


def check_memory(parameters: int, precision: str, on: torch.device) -> None:
    """Refuse a network whose parameters, gradients and optimizer state do not fit into memory."""
    needed = 4 * parameters * (8 if precision == "float64" else 4)
    if on.type == "cuda":
        there = torch.cuda.get_device_properties(on).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if needed > there:
        raise UserError(
            f"{parameters:,} parameters need {needed / 2**30:,.0f} GiB to train, but there are "
            f"{there / 2**30:,.0f} GiB on {on}; reduce --embed_dim or --layers"
        )


def _native(precision: str) -> bool:
    flags = torch.backends.cpu.get_cpu_capability()
    if precision == "bfloat16":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) or "SVE" in flags
    return bool(torch.cpu._is_amx_fp16_supported())
