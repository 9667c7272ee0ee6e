"""Peak memory in another process: exact, with the reason where there is none, and after a process that ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from allocating import Allocating, Ending, Unsupported
from torch import nn

from attnlab.bench import memory
from attnlab.bench.measurement import measure_group
from attnlab.bench.memory import Case, MemoryProcess, OutOfMemoryError, limited, plain_error
from attnlab.bench.timing import TimingConfig
from attnlab.bench.workloads import Layers
from attnlab.catalog import registry
from attnlab.nn.card import UnsupportedError
from attnlab.training.settings import Hardware

TINY = TimingConfig(min_sample=0.0, budget=0.0, min_rounds=3, max_rounds=3)


@pytest.fixture(scope="module")
def process() -> Iterator[MemoryProcess]:
    with MemoryProcess() as started:
        yield started


@pytest.mark.slow
def test_peaks_are_exact_and_an_ended_process_is_replaced(process: MemoryProcess) -> None:
    x = torch.ones(1, 2, 3)
    peak = process.peak(Case(Allocating(6_000_000), x, "prefill", Hardware()))
    assert peak.allocated == pytest.approx(6_000_000, rel=1e-3), "without what the first call keeps"
    with pytest.raises(UnsupportedError, match=r"^not here$"):
        process.peak(Case(Unsupported(), x, "prefill", Hardware()))
    models: dict[str, nn.Module] = {"ends": Ending(), "one": Layers([registry.load("multihead")(24, 3, causal=True)])}
    group = measure_group(models, torch.randn(2, 29, 24), "decode", TINY, process, Hardware(), lambda _: None)
    ended, one = group.rows
    assert ended.reason == "Ending has no cache that is known here"
    with pytest.raises(OutOfMemoryError, match="needs more memory than there is: the system ended the process"):
        process.peak(Case(Ending(), x, "prefill", Hardware()))
    assert one.cache_bytes == 2 * 2 * 29 * 24 * 4, "keys and values of 29 tokens, two sequences, float32"
    assert one.peak_bytes is not None
    assert one.cache_bytes < one.peak_bytes < one.cache_bytes + 50_000
    (again, killed) = measure_group(
        {"again": Allocating(3_000_000), "killed": Ending()}, x, "prefill", TINY, process, Hardware(), lambda _: None
    ).rows
    assert again.peak_bytes == pytest.approx(3_000_000, rel=1e-3)
    assert killed.seconds is None, "a case that ended the other process does not run in this one"


def test_peak_is_the_same_in_this_process() -> None:
    case = Case(Allocating(6_000_000), torch.ones(1, 2, 3), "prefill", Hardware())
    assert case.peak().allocated == pytest.approx(6_000_000, rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_an_allocation_above_the_limit_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    with limited(torch.device("cpu")):
        torch.empty(2**28, dtype=torch.uint8)
        with pytest.raises(RuntimeError) as raised:
            torch.empty(2**31, dtype=torch.uint8)
    assert str(plain_error(raised.value)) == "needs more memory than there is (1.0 GiB available)"
    torch.empty(2**31, dtype=torch.uint8)  # nothing is written to it


def test_there_is_memory_available() -> None:
    assert 2**20 < memory.available() <= 2**63
