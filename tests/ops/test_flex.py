"""FlexAttention with attnlab masks. It is chosen on a GPU only; its block masks are tested on a CPU too."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from attention_cases import randn
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnlab.masks import (
    Mask,
    block_local,
    block_sparse,
    causal,
    documents,
    from_key_padding_mask,
    from_tensor,
    padding,
    prefix,
    random_blocks,
    sliding_window,
)
from attnlab.ops.backends import flex
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.softmax import softmax_attention, softmax_weights

B, H, N, M, d = 2, 3, 131, 149, 17
IDS = torch.arange(M) // 23
PATTERN = torch.rand(B, H, 5, 5, generator=torch.Generator().manual_seed(5)) > 0.5
MASKS: list[Mask] = [
    causal() & sliding_window(7),
    sliding_window(5) | prefix(torch.tensor([3, 9])),
    ~sliding_window(9) & prefix(11),
    causal() & padding(torch.tensor([100, 149])),
    padding(torch.tensor([100, 90]), side="left", max_length=M),
    padding(torch.tensor([100, 90]), mask_queries=True),
    causal() & documents(IDS),
    documents(torch.stack([IDS, IDS // 2])),
    block_local(16),
    block_sparse(31, PATTERN),
    block_sparse(31, PATTERN[0, 0]),
    sliding_window(7) & from_key_padding_mask(torch.arange(M) >= torch.tensor([[90], [120]])),
]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without compilation, on a CPU, and for short sequences."""
    monkeypatch.setattr(flex, "_supports", lambda q: True)
    monkeypatch.setattr(flex, "MIN_FLEX_LENGTH", 1)
    monkeypatch.setattr(flex, "_kept", {})
    monkeypatch.setattr(flex, "compiled", lambda: flex_attention)
    monkeypatch.setattr("attnlab.ops.softmax.can_inspect_values", lambda q: False)


def tensors(queries: int) -> list[Tensor]:
    return randn(*((B, H, n, d) for n in (queries, M, M)), dtype=torch.float32, grad=False)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("queries", [M, pytest.param(N, marks=pytest.mark.slow)])
def test_the_block_mask_matches_the_mask(mask: Mask, queries: int) -> None:
    q, k, v = tensors(queries)
    bound = mask.bind(queries, M, shape=(B, H))
    with warnings.catch_warnings(), record_dispatch() as records:
        warnings.simplefilter("ignore")  # that it is not compiled
        out = softmax_attention(q, k, v, bound)
    assert [record.name for record in records] == ["flex"]
    torch.testing.assert_close(out, softmax_weights(q, k, bound) @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_unsupported_calls_use_another_backend() -> None:
    q, k, v = tensors(M)
    matrix = from_tensor(torch.ones(M, M, dtype=torch.bool).tril(3)).bind(M)
    for mask, options in (
        (matrix, {}),
        (causal().bind(M), {}),
        (sliding_window(7).bind(M), {"bias": torch.zeros(M, M)}),
    ):
        with record_dispatch() as records:
            softmax_attention(q, k, v, mask, **options)
        assert [record.name for record in records] != ["flex"]


def test_flex_is_not_chosen_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "MIN_FLEX_LENGTH", 1)
    monkeypatch.setattr("attnlab.ops.softmax.can_inspect_values", lambda q: False)
    q, k, v = tensors(M)
    with record_dispatch() as records:
        softmax_attention(q, k, v, sliding_window(7).bind(M))
    assert [record.name for record in records] != ["flex"]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("rows", [1, 2**26])
def test_the_blocks_are_those_of_pytorch(mask: Mask, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "MAX_VALUES", rows)
    bound = mask.bind(1031, 1031) if not mask.has_fixed_size and not mask.tensors else mask.bind(M)
    ours, B, H = flex._make(bound, torch.device("cpu")), bound.mask.batch_size, bound.mask.num_heads

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return bound.mask.allowed(b, h, q, k)

    theirs = create_block_mask(rule, B, H, bound.queries, bound.keys, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    assert ours.seq_lengths == theirs.seq_lengths


def test_blocks_are_kept_until_a_tensor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_kept", {})
    lengths = torch.tensor([100, 149])
    rule, cpu = padding(lengths), torch.device("cpu")

    def blocks(mask: Mask) -> BlockMask:
        return flex.block_mask(mask.bind(M, shape=(B, H)), cpu)

    first = blocks(causal() & rule)
    assert blocks(causal() & rule) is first
    assert blocks(causal() & padding(lengths.clone())) is not first
    assert blocks(sliding_window(7) & rule) is not first
    assert blocks(sliding_window(7) & sliding_window(5)) is blocks(sliding_window(7) & sliding_window(5))
    drawn = random_blocks(16, 2, 5)
    assert blocks(drawn) is blocks(drawn)
    rule.lengths.copy_(torch.tensor([3, 5]))
    assert blocks(causal() & rule) is not first
    for size in range(1, 40):
        blocks(sliding_window(size))
    assert len(flex._kept) == flex.MAX_KEPT_MASKS
    with torch.inference_mode():
        blocks(padding(torch.tensor([100, 149])))
    assert blocks(sliding_window(39)) is next(reversed(flex._kept.values()))


@pytest.mark.usefixtures("uncompiled")
def test_beyond_the_limit_of_compilations_sdpa_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def over_the_limit(*args: object, **options: object) -> Tensor:
        raise FailOnRecompileLimitHit("hit")

    monkeypatch.setattr(flex, "compiled", lambda: over_the_limit)
    q, k, v = tensors(M)
    bound = (causal() & sliding_window(7)).bind(M)
    torch.testing.assert_close(softmax_attention(q, k, v, bound), softmax_weights(q, k, bound) @ v)


@pytest.mark.gpu
def test_flex_on_a_gpu() -> None:
    q, k, v = (torch.randn(B, H, 2101, 64, device="cuda", requires_grad=True) for _ in range(3))
    bound = (causal() & sliding_window(256)).bind(2101, device="cuda")
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, bound)
    assert [record.name for record in records] == ["flex"]
    expected = softmax_weights(q, k, bound) @ v
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    gradients = (torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, expected))
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_more_shapes_than_the_default_limit_stay_compiled() -> None:
    """Uncompiled, FlexAttention would materialize all attention weights."""
    q, k, v = (torch.randn(2, 16, 4099, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    shapes = itertools.product((1, 2), (1, 16), (2049, 4099))
    for size, (batch, heads, length) in enumerate(shapes, torch._dynamo.config.recompile_limit):
        part = [t[:batch, :heads, :length] for t in (q, k, v)]
        for dtype in (torch.bfloat16, torch.float16):
            bound = (causal() & sliding_window(size)).bind(length, device="cuda")
            softmax_attention(*(t.to(dtype) for t in part), bound)
    assert torch.cuda.max_memory_allocated() - before < 2 * 16 * 4099**2


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_matches() -> None:
    """The compiled kernel evaluates the mask per element; the CPU kernel of inductor stands in for that of a GPU."""
    q, k, v = tensors(M)
    mask = (
        causal() & sliding_window(40) & documents(torch.stack([IDS, IDS // 2])) & padding(torch.tensor([100, 149]))
    ).bind(M)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        out = flex.flexible(q, k, v, flex._make(mask, q.device), d**-0.5)
    torch.testing.assert_close(out, softmax_weights(q, k, mask) @ v, rtol=1e-4, atol=1e-5)
