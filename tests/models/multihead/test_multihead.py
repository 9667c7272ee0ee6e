"""Multi-head attention against `torch.nn.MultiheadAttention`, and what only it can do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention

B, N, M, H, D = 2, 5, 7, 3, 33  # heads of 11


def theirs(**options: Any) -> nn.MultiheadAttention:
    """Their layer, its biases moved off zero, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(D, H, batch_first=True, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return layer


def tokens(length: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=dtype)


def test_parameters() -> None:
    assert sum(p.numel() for p in MultiAttention(D, H).parameters()) == 4 * D**2 + 4 * D
    assert sum(p.numel() for p in MultiAttention(D, H, bias=False).parameters()) == 4 * D**2
    assert MultiAttention(64).num_heads == 8


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
def test_self_attention_equals_torch(bias: bool) -> None:
    layer, x = theirs(bias=bias), tokens()
    out, weights = layer(x, x, x, average_attn_weights=False)
    ours = MultiAttention.from_torch(layer)
    torch.testing.assert_close(ours(x), out)
    torch.testing.assert_close(ours.attention_weights(x), weights)


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_equals_torch(bias: bool) -> None:
    layer, x, context = theirs(bias=bias), tokens(), tokens(M)
    lengths = torch.tensor([3, 7])
    ignored = torch.arange(M) >= lengths[:, None]
    out, weights = layer(x, context, context, key_padding_mask=ignored, average_attn_weights=False)
    ours, mask = MultiAttention.from_torch(layer), masks.padding(lengths)
    torch.testing.assert_close(ours(x, context=context, mask=mask), out)
    torch.testing.assert_close(ours.attention_weights(x, context=context, mask=mask), weights)


def test_causal_equals_torch() -> None:
    layer, x = theirs(), tokens()
    out, _ = layer(x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(N, dtype=x.dtype), is_causal=True)
    torch.testing.assert_close(MultiAttention.from_torch(layer, causal=True)(x), out)


def test_gradients_equal_torch() -> None:
    layer = theirs()
    ours = MultiAttention.from_torch(layer)
    a, b = tokens().requires_grad_(), tokens().requires_grad_()
    layer(a, a, a)[0].square().sum().backward()
    ours(b).square().sum().backward()
    torch.testing.assert_close(b.grad, a.grad)
    torch.testing.assert_close(ours.qkv.weight.grad, layer.in_proj_weight.grad)
    torch.testing.assert_close(ours.output.bias.grad, layer.out_proj.bias.grad)


def test_context_equal_to_x_is_self_attention() -> None:
    layer, x = MultiAttention(D, H).double(), tokens()
    torch.testing.assert_close(layer(x, context=x), layer(x))


def test_an_attn_bias_of_three_axes_is_per_head() -> None:
    layer, x = MultiAttention(D, H).double(), tokens()
    bias = torch.randn(H, N, N, dtype=torch.float64)
    torch.testing.assert_close(
        layer.attention_weights(x, attn_bias=bias), (layer.attention_weights(x).log() + bias).softmax(-1)
    )


def test_one_head_equals_selfhead() -> None:
    many, one = MultiAttention(D, 1).double(), SelfAttention(D).double()
    torch.nn.init.normal_(many.qkv.bias)
    with torch.no_grad():
        for layer, weight, bias in zip(
            (one.query, one.key, one.value), many.qkv.weight.split(D), many.qkv.bias.split(D), strict=True
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    one.output.load_state_dict(many.output.state_dict())
    torch.testing.assert_close(one(tokens()), many(tokens()))
    torch.testing.assert_close(one.attention_weights(tokens()), many.attention_weights(tokens()))


def test_each_head_uses_its_slice_of_the_width() -> None:
    layer, x = MultiAttention(D, H).double(), tokens()
    before = layer.attention_weights(x)
    with torch.no_grad():
        layer.qkv.weight[D + 11 : D + 22].mul_(3)  # the keys of the second head
    assert (layer.attention_weights(x) != before).flatten(2).any(-1).all(0).tolist() == [False, True, False]
