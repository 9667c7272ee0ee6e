"""Sliding-window attention against local-attention 1.11 and the attention of Mistral in transformers 5.24.

With ``exact_windowsize``, local-attention does not count the token itself, so its window has one key more than ours.
transformers counts as we do.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnlab import masks
from attnlab.models.slidingwindow import SlidingWindowAttention

ORACLES = {
    "test_local_attention": ("local-attention", "LocalAttention"),
    "test_mistral": ("transformers", "MistralAttention"),
}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))


def tokens(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d", "size"), [(2, 15, 3, 5, 5), (1, 21, 2, 7, 3), (3, 11, 1, 2, 11)])
@pytest.mark.parametrize("padded", [False, True])
def test_local_attention(
    dtype: torch.dtype, causal: bool, B: int, N: int, H: int, d: int, size: int, padded: bool
) -> None:
    theirs = pytest.importorskip("local_attention").LocalAttention(
        size, causal=causal, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False
    )
    torch.manual_seed(0)
    layer = SlidingWindowAttention(H * d, H, window_size=size + 1, causal=causal).to(dtype)
    torch.nn.init.normal_(layer.qkv.bias)
    x = tokens(B, N, H * d, dtype=dtype)
    lengths = torch.tensor([N - 4, N, N - 1][:B])
    mask = masks.padding(lengths) if padded else None
    seen = torch.ones(B, N, dtype=torch.bool)
    if padded:  # fully masked rows are the mean of all values in theirs
        rule = masks.sliding_window(size + 1) & masks.padding(lengths)
        seen = (rule & masks.causal() if causal else rule).materialize(N).any(-1)[:, 0]

    parameters = list(layer.parameters())
    ours = layer(x, mask=mask)[seen]
    Q, K, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    real = torch.arange(N) < lengths[:, None] if padded else torch.ones(B, N, dtype=torch.bool)
    heads = theirs(Q, K, V, mask=real)
    expected = layer.output(heads.transpose(1, 2).flatten(2))[seen]
    same(ours, expected, TOLERANCE[dtype])
    direction = tokens(*ours.shape, dtype=dtype)
    for mine, other in zip(
        torch.autograd.grad((ours * direction).sum(), parameters),
        torch.autograd.grad((expected * direction).sum(), parameters),
        strict=True,
    ):
        same(mine / (1 + other.abs()), other / (1 + other.abs()), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize(("B", "N", "H", "D", "window"), [(2, 13, 3, 12, 5), (1, 17, 1, 2, 3), (3, 7, 2, 20, 11)])
@pytest.mark.parametrize("padded", [False, True])
def test_mistral(dtype: torch.dtype, positions: str, B: int, N: int, H: int, D: int, window: int, padded: bool) -> None:
    pytest.importorskip("transformers")
    from transformers.masking_utils import create_sliding_window_causal_mask

    from peers.adapters.base import join_projections
    from peers.adapters.transformers import Mistral

    torch.manual_seed(0)
    sizes = {"num_key_value_heads": H, "sliding_window": window, "max_position_embeddings": N}
    mistral = Mistral(D, H, **sizes).to(dtype)
    theirs, config = mistral.inner, mistral.inner.config  # its softmax is float32, and NaN in fully masked rows
    layer = SlidingWindowAttention(D, H, window_size=window, causal=True, bias=False, positions=positions).to(dtype)
    join_projections([theirs.q_proj, theirs.k_proj, theirs.v_proj], layer.qkv)
    layer.output.load_state_dict(theirs.o_proj.state_dict())
    a, b = (tokens(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    position_ids = torch.arange(N).unsqueeze(0)
    if positions == "none":
        cos_sin = (torch.ones(1, N, D // H, dtype=dtype), torch.zeros(1, N, D // H, dtype=dtype))
    else:
        cos_sin = mistral.rotation(a, position_ids)
    lengths = torch.tensor([N - 2, N, N - 1][:B])
    real = (torch.arange(N) < lengths[:, None]) if padded else torch.ones(B, N, dtype=torch.bool)
    blocked = create_sliding_window_causal_mask(config, a, real.long(), None, position_ids, allow_is_causal_skip=False)
    expected = theirs(a, cos_sin, blocked)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    same(ours, expected, 1e-5)
    direction = tokens(*ours.shape, dtype=dtype)
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    same(b.grad, a.grad, 1e-5)
    weights = [theirs.q_proj.weight.grad, theirs.k_proj.weight.grad, theirs.v_proj.weight.grad]
    same(layer.qkv.weight.grad, torch.cat(weights), 1e-5)
    same(layer.output.weight.grad, theirs.o_proj.weight.grad, 1e-5)
