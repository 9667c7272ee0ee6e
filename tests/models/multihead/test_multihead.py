"""Multi-head attention: conversions from and to `torch.nn.MultiheadAttention`, and the attention weights of both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from comparison import random, random_biases
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention

B, N, M, H, D = 2, 5, 7, 3, 33  # heads of 11


def theirs(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return random_biases(nn.MultiheadAttention(D, H, batch_first=True, **{"dtype": torch.float64, **options}))


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("train", [True, False])
def test_from_torch_and_back_is_exact(bias: bool, dtype: torch.dtype, train: bool) -> None:
    given = theirs(bias=bias, dtype=dtype, dropout=0.125).train(train)
    ours = MultiAttention.from_torch(given, causal=True)
    assert (ours.embed_dim, ours.num_heads, ours.dropout, ours.causal, ours.training) == (D, H, 0.125, True, train)
    assert all(p.dtype == dtype and p.requires_grad for p in ours.parameters())
    back = ours.to_torch()
    assert back.batch_first
    assert (back.dropout, back.training) == (0.125, train)
    was, now = given.state_dict(), back.state_dict()
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_converted_layers_share_no_memory() -> None:
    given = theirs()
    ours = MultiAttention.from_torch(given)
    before = copy.deepcopy(given.state_dict())
    torch.nn.init.zeros_(ours.qkv.weight)
    torch.nn.init.zeros_(ours.to_torch().out_proj.weight)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert ours.output.weight.any()


@pytest.mark.parametrize("options", [{"kdim": 7}, {"vdim": 7}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_from_torch_refuses_unsupported_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only an nn.MultiheadAttention without kdim, vdim, add_bias_kv and add_zero"):
        MultiAttention.from_torch(nn.MultiheadAttention(D, H, **options))


def test_from_torch_refuses_batch_second_unless_allowed() -> None:
    """Both take (5, 7, D): without the refusal, items would be taken for positions in silence."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(D, H, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch_first=False and takes \(length, batch, D\).*batch_first=True\)"):
        MultiAttention.from_torch(layer)
    x = tokens()
    theirs = layer(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)
    torch.testing.assert_close(MultiAttention.from_torch(layer, batch_first=True)(x), theirs)


def test_to_torch_copies_the_parameters() -> None:
    ours = MultiAttention(D, H).double()
    torch.nn.init.normal_(ours.qkv.bias)
    x = tokens()
    torch.testing.assert_close(ours.to_torch()(x, x, x)[0], ours(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", [True, False])
def test_output_and_weights_equal_torch(bias: bool, cross: bool) -> None:
    layer, x = theirs(bias=bias), tokens()
    context = tokens(M) if cross else x
    lengths = torch.tensor([3, context.shape[1]])
    ignored = torch.arange(context.shape[1]) >= lengths[:, None]
    out, weights = layer(x, context, context, key_padding_mask=ignored, average_attn_weights=False)
    ours, options = MultiAttention.from_torch(layer), {"context": context, "mask": masks.padding(lengths)}
    torch.testing.assert_close(ours(x, **options), out)
    torch.testing.assert_close(ours.attention_weights(x, **options), weights)
