"""Differential attention against DiffLlama's in transformers 5.24.

Their norm has no gains; ours start at one. They order the queries and keys by softmax and then by head, we by head and
then by softmax.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab.models.differential import DifferentialAttention

ORACLES = {"test_": ("transformers", "DiffLlamaAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d", "D"), [(2, 7, 3, 4, 24), (1, 13, 1, 2, 4), (3, 5, 5, 6, 60)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])


def diffllama(H: int, d: int, D: int, layer_idx: int, attention: str, dtype: torch.dtype) -> Any:
    pytest.importorskip("transformers")
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = DiffLlamaConfig(
        hidden_size=D,
        num_attention_heads=2 * H,
        num_key_value_heads=2 * H,
        head_dim=d,
        attention_bias=True,
        rms_norm_eps=1e-5,
        lambda_std_dev=0.5,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    layer = DiffLlamaAttention(config, layer_idx=layer_idx).to(dtype)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        torch.nn.init.normal_(projection.bias)
    return layer


def paired(theirs: Tensor, H: int, d: int) -> Tensor:
    """Reorder rows from (softmax, head, d) to (head, softmax, d)."""
    return theirs.unflatten(0, (2, H, d)).transpose(0, 1).flatten(0, 2)


def joined_qkv(theirs: Any, H: int, d: int, what: Any) -> Tensor:
    return torch.cat([paired(what(getattr(theirs, f"{part}_proj")), H, d) for part in "qkv"])


NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def ours_of(theirs: Any, H: int, d: int, D: int, **options: Any) -> DifferentialAttention:
    layer = DifferentialAttention(D, H, lambda_init=theirs.lambda_init, **options).to(theirs.q_proj.weight.dtype)
    with torch.no_grad():
        layer.qkv.weight.copy_(joined_qkv(theirs, H, d, lambda part: part.weight))
        layer.qkv.bias.copy_(joined_qkv(theirs, H, d, lambda part: part.bias))
        layer.lambda_qk.copy_(torch.stack([getattr(theirs, name) for name in NAMES]))
        layer.output.load_state_dict(theirs.o_proj.state_dict())
    return layer


def compare(theirs: Any, layer: Any, B: int, N: int, padded: bool, cos_sin: tuple[Tensor, Tensor], atol: float) -> None:
    H, d, dtype = layer.num_heads, layer.head_dim // 2, layer.qkv.weight.dtype
    x = torch.randn(B, N, layer.embed_dim, generator=torch.Generator().manual_seed(N), dtype=torch.float64).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    real = torch.arange(N) < torch.tensor([N - 2, N, N - 1][:B])[:, None]
    if not padded:
        real = torch.ones_like(real)
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    their_mask = allowed.tril() if layer.causal else allowed
    blocked = torch.zeros(their_mask.shape, dtype=dtype).masked_fill(~their_mask, torch.finfo(dtype).min)
    expected = theirs(a, cos_sin, blocked)[0][real]
    ours = layer(b, mask=allowed if padded else None)[real]

    def same(found: Tensor, true: Tensor) -> None:
        torch.testing.assert_close(found, true, rtol=0, atol=atol)

    same(ours, expected)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) / N
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    same(b.grad, a.grad)
    same(layer.qkv.weight.grad, joined_qkv(theirs, H, d, lambda part: part.weight.grad))
    same(layer.qkv.bias.grad, joined_qkv(theirs, H, d, lambda part: part.bias.grad))
    lambdas = torch.stack([getattr(theirs, name).grad for name in NAMES])  # computed in float32
    torch.testing.assert_close(layer.lambda_qk.grad, lambdas, rtol=0, atol=1e-5)
    for name in ("weight", "bias"):
        same(getattr(layer.output, name).grad, getattr(theirs.o_proj, name).grad)


def no_rotation(N: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines of zero angles."""
    return torch.ones(1, N, d, dtype=dtype), torch.zeros(1, N, d, dtype=dtype)


@SHAPES
@CAUSAL
@PADDED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffllama(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 2, "eager", dtype)  # its softmax is always float32
    compare(theirs, ours_of(theirs, H, d, D, causal=causal), B, N, padded, no_rotation(N, d, dtype), 1e-5)


@SHAPES
@CAUSAL
@PADDED
def test_diffllama_in_float64(padded: bool, causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 1, "sdpa", torch.float64)
    with torch.no_grad():  # its λ is float32, and exact only where both terms are exp(0)
        theirs.lambda_q1.zero_()
        theirs.lambda_k2.zero_()
    compare(theirs, ours_of(theirs, H, d, D, causal=causal), B, N, padded, no_rotation(N, d, torch.float64), 1e-10)


@SHAPES
@CAUSAL
def test_each_query_is_rotated_separately(causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 0, "eager", torch.float32)
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaRotaryEmbedding

    cos_sin = DiffLlamaRotaryEmbedding(theirs.config)(torch.zeros(1, N, D), torch.arange(N).unsqueeze(0))
    compare(theirs, ours_of(theirs, H, d, D, causal=causal, positions="rotary"), B, N, False, cos_sin, 1e-5)
