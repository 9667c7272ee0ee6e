"""FlexAttention with attnlab masks. It is chosen on a GPU only; its block masks are tested on a CPU too."""

from __future__ import annotations

import warnings

import pytest
import torch
from attention_cases import randn
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

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
    sliding_window,
)
from attnlab.ops.backends import flex
from attnlab.ops.call import AttentionCall
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
    monkeypatch.setattr(flex, "_takes", lambda q: True)
    monkeypatch.setattr(flex, "MIN_FLEX_LENGTH", 1)
    monkeypatch.setattr(flex, "MIN_MASKED_BLOCKS", -torch.inf)
    monkeypatch.setattr(flex, "compiled", lambda: flex_attention)
    monkeypatch.setattr("attnlab.ops.softmax.can_inspect_values", lambda q: False)


def tensors(queries: int) -> list[Tensor]:
    return randn(*((B, H, n, d) for n in (queries, M, M)), dtype=torch.float32, grad=False)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("queries", [M, N])
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


def test_flex_is_not_chosen_on_a_cpu() -> None:
    call = AttentionCall(*tensors(M), mask=sliding_window(7).bind(M))
    assert flex.Flex().applies(call) is None


@pytest.mark.gpu
def test_flex_on_a_gpu() -> None:
    q, k, v = (torch.randn(B, H, 2048, 64, device="cuda", requires_grad=True) for _ in range(3))
    bound = (causal() & sliding_window(256)).bind(2048, device="cuda")
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, bound)
    assert [record.name for record in records] == ["flex"]
    expected = softmax_weights(q, k, bound) @ v
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    gradients = (torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, expected))
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-2)


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
        out = flex.Flex().run(AttentionCall(q, k, v, mask), flex.block_mask(mask, q.device))
    torch.testing.assert_close(out, softmax_weights(q, k, mask) @ v, rtol=1e-4, atol=1e-5)
