"""The states of recurrences: by hand, against the scan, and in the order of the batch. Sizes are primes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import causal, documents, padding
from attnlab.ops.scan import NormalizedScan, linear_scan
from attnlab.ops.scan.scan_map import ScanMap

B, H, N, d, w = 2, 3, 7, 5, 11


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gates(kind: str) -> dict[str, Tensor]:
    decay = {"constant": (H,), "decay": (B, H, N), "per channel": (B, H, N, d)}
    found: dict[str, Tensor] = {}
    for name, shape in decay.items():
        if name in kind:
            found["log_decay"] = -randn(*shape, seed=1).abs()
    if "delta" in kind:
        found["beta"] = randn(B, H, N, seed=2).sigmoid()
    if "a and b" in kind:
        found |= {"a": randn(B, H, N, d, seed=3) / 3, "b": randn(B, H, N, d, seed=4) / 3}
    if "cleared" in kind:
        found["log_decay"][..., 3] = -torch.inf
    return found


KINDS = ["", "constant", "decay", "per channel", "delta", "decay, delta", "a and b", "per channel, a and b",
         "decay, a and b, cleared"]  # fmt: skip


def test_three_tokens_by_hand() -> None:
    k = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[None, None]
    v = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])[None, None]
    trace = ScanMap(k, k, beta=torch.tensor([1.0, 0.5, 1.0])[None, None]).states(v, 0)
    # [[3, 4], [0, 0]], then [[1.5, 3], [0, 0]], then [[1.5, 3], [1, 0]]
    assert trace.norm == pytest.approx([5.0, math.sqrt(11.25), 3.5])
    assert trace.rank == [1, 1, 2]
    assert trace.written == pytest.approx([5.0, 1.0, 1.0])
    assert trace.erased == pytest.approx([0.0, 2.5, 0.0])
    decayed = ScanMap(k, k, log_decay=torch.full((1,), math.log(0.5))).states(v, 0)
    assert decayed.norm == pytest.approx([5.0, math.hypot(1.5, 4.0), math.sqrt(0.75**2 + 2**2 + 1)])
    assert decayed.written == pytest.approx([5.0, 2.0, 1.0])
    assert decayed.erased == pytest.approx([0.0, 2.5, math.hypot(1.5, 4.0) / 2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_those_of_the_scan(kind: str) -> None:
    q, k, v, options = randn(B, H, N, d), randn(B, H, N, d, seed=5), randn(B, H, N, w, seed=6), gates(kind)
    trace = ScanMap(q, k, **options).states(v, 2, batch=1)
    before = torch.zeros(d, w, dtype=torch.float64)
    for t in range(N):
        stop = {name: x if x.dim() == 1 else x[:, :, : t + 1] for name, x in options.items()}
        values = v[:, :, : t + 1].clone()
        after = linear_scan(q[:, :, : t + 1], k[:, :, : t + 1], values, **stop)[1][1, 2]
        values[:, :, t] = 0.0
        kept = linear_scan(q[:, :, : t + 1], k[:, :, : t + 1], values, **stop)[1][1, 2]
        assert trace.norm[t] == pytest.approx(after.norm().item())
        assert trace.written[t] == pytest.approx((after - kept).norm().item())
        assert trace.erased[t] == pytest.approx((before - kept).norm().item(), abs=1e-12)
        singular = torch.linalg.svdvals(after)
        assert trace.rank[t] == (singular > 0.01 * singular[0]).sum()
        before = after


def test_the_rank_counts_singular_values_above_one_percent() -> None:
    k, v = torch.eye(3)[None, None], torch.diag(torch.tensor([1.0, 0.011, 0.009]))[None, None]
    assert ScanMap(k, k).states(v, 0).rank == [1, 2, 2]
    assert ScanMap(k, k).states(0 * v, 0).rank == [0, 0, 0]


def layer_and_tokens(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return registry.load(name)(16, 2, causal=True).double().eval(), randn(2, N, 16)


def trace(layer: Any, x: Tensor, batch: int = 0, mask: Any = None) -> Any:
    return layer.attention_map(x, mask=mask).states(layer.values(x, mask=mask), 1, batch)


def assert_equal(actual: Any, expected: Any, tokens: slice) -> None:
    for name in ("norm", "rank", "written", "erased"):
        assert getattr(actual, name)[tokens] == pytest.approx(getattr(expected, name), abs=1e-9), name


@pytest.mark.parametrize("name", ["gateddeltanet", "rwkv7", "mamba2", "linear"])
def test_padding_and_documents_are_in_the_order_of_the_batch(name: str) -> None:
    layer, x = layer_and_tokens(name)
    left = trace(layer, x, 1, padding(torch.tensor([N, 5]), side="left", max_length=N))
    assert left.norm[:2] == left.written[:2] == left.erased[:2] == [0.0, 0.0]
    assert left.rank[:2] == [0, 0]
    assert_equal(left, trace(layer, x[1:, 2:]), slice(2, N))
    right = trace(layer, x, 1, padding(torch.tensor([N, 5])))
    assert_equal(right, trace(layer, x[1:, :5]), slice(0, 5))
    assert right.norm[5:] == right.written[5:] == right.erased[5:] == [0.0, 0.0]
    packed = trace(layer, x, 0, documents(torch.tensor([0, 0, 0, 1, 1, 1, 1])))
    assert_equal(packed, trace(layer, x[:1, :3]), slice(0, 3))
    alone = trace(layer, x[:1, 3:])
    assert packed.norm[3:] == pytest.approx(alone.norm)
    assert packed.written[3:] == pytest.approx(alone.written)
    interleaved = trace(layer, x, 0, documents(torch.tensor([0, 1, 0, 1, 0, 1, 0])))
    assert interleaved.norm[::2] == pytest.approx(trace(layer, x[:1, ::2]).norm)


def test_a_new_document_erases_what_the_recurrence_held() -> None:
    layer, x = layer_and_tokens("retention")
    packed = trace(layer, x, 0, documents(torch.tensor([0, 0, 0, 1, 1, 1, 1])))
    assert packed.erased[3] == pytest.approx(packed.norm[2])


def test_the_state_of_kernelized_attention_sums_scaled_features() -> None:
    q, k, v, scale = randn(B, H, N, d).abs(), randn(B, H, N, d, seed=1).abs(), randn(B, H, N, w), 40 * randn(B, H, N)
    actual = NormalizedScan(q, k, causal().bind(N), scale).states(v, 1, batch=1)
    features = k[1, 1] * (scale[1, 1] - scale[1, 1].max()).exp().unsqueeze(-1)
    expected = (features.unsqueeze(-1) * v[1, 1].unsqueeze(1)).cumsum(0)
    assert actual.norm == pytest.approx(expected.flatten(1).norm(dim=-1).tolist())
    assert actual.erased == [0.0] * N
