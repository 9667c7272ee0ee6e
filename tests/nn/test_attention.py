"""The base class of attention: validation, combined masks and fully masked rows, for any mechanism."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mechanisms import supporting
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import BoundMask, Mask, causal, documents, from_tensor, padding, sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.models.sigmoid import SigmoidAttention
from attnlab.models.sinks import SinkAttention
from attnlab.nn.attention import Attention, UnsupportedError, make_linear
from attnlab.nn.cache import KVCache
from attnlab.nn.card import CAPABILITIES, Card

B, N, M, D, H = 2, 5, 7, 12, 3


def card(*supports: str) -> Card:
    return Card(
        title="A stub",
        summary="",
        paper="",
        authors="",
        year=2017,
        arxiv=None,
        kind="another operator",
        heads="1",
        time="n",
        memory="n",
        representation="",
        use_case="",
        supports=supports,
    )


class Plain(Attention):
    """Supports nothing and returns its input."""

    card = card()

    def _forward(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        return x


class Recorder(Attention):
    """Supports everything and records the mask and the options of a call."""

    card = card(*CAPABILITIES)

    def _forward(self, x: Tensor, mask: BoundMask | None, **options: Any) -> Any:
        self.mask, self.options = mask, options
        return torch.ones_like(x)


class Near(Recorder):
    """Attends to a window of half of the sequence."""

    def attention_pattern(self, length: int) -> Mask:
        self.pattern_length = length
        return sliding_window(max(1, length // 2))


def x(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length))


# The constructor


@pytest.mark.parametrize(
    ("mechanism", "arguments", "options", "error", "message"),
    [
        (
            MultiAttention,
            (100, 8),
            {},
            ValueError,
            "(100) must be divisible by num_heads (8); try num_heads=4, 5 or 10",
        ),
        (MultiAttention, (7, 2), {}, ValueError, "try num_heads=1 or 7"),
        (MultiAttention, (64, 48), {}, ValueError, "try num_heads=16, 32 or 64"),
        (MultiAttention, (1, 3), {}, ValueError, "try num_heads=1"),
        (MultiAttention, (0,), {}, ValueError, "embed_dim must be at least 1, not 0"),
        (MultiAttention, (12, -3), {}, ValueError, "num_heads must be at least 1, not -3"),
        (MultiAttention, (12.0, 3), {}, TypeError, "embed_dim must be an integer, not 12.0"),
        (MultiAttention, (12, True), {}, TypeError, "num_heads must be an integer, not True"),
        (SelfAttention, ("12",), {}, TypeError, "embed_dim must be an integer, not '12'"),
        (SelfAttention, (12,), {"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, not 1.0"),
        (SelfAttention, (12,), {"dropout": -0.1}, ValueError, "not -0.1"),
        (SelfAttention, (12,), {"dropout": float("nan")}, ValueError, "not nan"),
        (Plain, (12,), {"causal": True}, UnsupportedError, "Plain does not support causal; it supports self-attention"),
        (SelfAttention, (12, True), {}, TypeError, "positional"),
        (MultiAttention, (12, 3, True), {}, TypeError, "positional"),
        *(
            (mechanism, arguments, {"emd_dim": 16, **options}, TypeError, "not both")
            for mechanism in (SelfAttention, MultiAttention)
            for arguments, options in (((), {"embed_dim": 16}), ((16,), {}))
        ),
        (SelfAttention, (), {"causal": True}, TypeError, "needs embed_dim= (or emd_dim=), the width of a token"),
        (MultiAttention, (), {"causal": True}, TypeError, "needs embed_dim= (or emd_dim=), the width of a token"),
    ],
)
def test_invalid_constructor_arguments(
    mechanism: Any, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mechanism(*arguments, **options)


@pytest.mark.parametrize("mechanism", [SelfAttention, MultiAttention])
def test_embed_dim_has_two_spellings(mechanism: Callable[..., Attention]) -> None:
    assert mechanism(emd_dim=16).embed_dim == mechanism(embed_dim=16).embed_dim == mechanism(16).embed_dim == 16


def test_repr_shows_the_options() -> None:
    assert "embed_dim=12, num_heads=3, causal=True, dropout=0.25" in repr(
        MultiAttention(12, 3, causal=True, dropout=0.25)
    )


def test_projections_are_initialized_with_variance_one_over_fan_in() -> None:
    torch.manual_seed(0)
    layer = make_linear(401, 503)
    assert layer.weight.std().item() == pytest.approx(401**-0.5, rel=0.01)
    assert not layer.bias.any()
    assert make_linear(3, 5, bias=False).bias is None


def test_scale_output_scales_only_the_output_projection() -> None:
    layer = MultiAttention(D, H)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.scale_output(0.5)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[name] * (0.5 if name == "output.weight" else 1), rtol=0, atol=0)


# Capabilities


@pytest.mark.parametrize(
    ("name", "argument"),
    [("attn_bias", torch.zeros(N, N)), ("context", x(M)), ("cache", object())],
)
def test_unsupported_arguments_are_refused(name: str, argument: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"Plain does not support {name}; it supports self-attention alone"):
        Plain(D)(x(), **{name: argument})


@pytest.mark.parametrize(
    ("supports", "mask", "message"),
    [
        ((), causal(), r"Plain does not support mask=causal\(\) \(arbitrary_mask\); it takes no mask"),
        ((), padding(torch.tensor([3, 5])), r"\(padding\); it takes no mask"),
        (("padding",), documents(torch.arange(N)), r"\(segments\); it takes masks of the kinds padding$"),
        (("padding", "segments"), sliding_window(2), "of the kinds padding and segments"),
        (("padding",), padding(torch.tensor([3, 5])) & causal(), r"mask=causal\(\)"),
        (("padding",), torch.ones(N, N, dtype=torch.bool), r"\(arbitrary_mask\)"),
    ],
)
def test_a_mask_of_an_unsupported_kind_is_refused(supports: tuple[str, ...], mask: Any, message: str) -> None:
    layer = Plain(D)
    layer.card = card(*supports)  # type: ignore[misc]
    with pytest.raises(UnsupportedError, match=message):
        layer(x(), mask=mask)


def test_a_supported_kind_of_mask_is_accepted() -> None:
    lengths, ids = torch.tensor([3, 5]), torch.arange(N) // 2
    for supports, mask in (
        (("padding",), padding(lengths)),
        (("segments",), documents(ids)),
        (("padding", "segments"), documents(ids) & padding(lengths)),
        (("causal", "padding"), causal() & padding(lengths)),
    ):
        layer = Plain(D)
        layer.card = card(*supports)  # type: ignore[misc]
        layer.causal = "causal" in supports
        layer(x(), mask=mask)


def test_the_old_capability_mask_is_an_alias() -> None:
    assert card("causal", "mask").supports == ("causal", "padding", "segments", "arbitrary_mask")


def test_weights_need_the_capability() -> None:
    for call in (lambda: Plain(D).attention_weights(x()), lambda: Plain(D).apply_weights(torch.ones(B, 1, N, N), x())):
        with pytest.raises(UnsupportedError, match="does not support weights"):
            call()


def test_the_error_lists_the_capabilities() -> None:
    with pytest.raises(
        UnsupportedError, match="SelfAttention does not support context; it supports causal, padding, segments,"
    ):
        SelfAttention(D)(x(), context=x(M))


def test_a_capability_without_its_methods_is_an_error() -> None:
    layer = Recorder(D)
    with pytest.raises(
        NotImplementedError, match="Recorder has the capability weights, but no _build_map and no _attention_weights"
    ):
        layer.attention_weights(x())
    with pytest.raises(NotImplementedError, match="Recorder has the capability weights, but no _apply_weights"):
        layer.apply_weights(torch.ones(B, 1, N, N), x())


def test_only_passed_arguments_reach_forward() -> None:
    layer = Recorder(D)
    layer(x())
    assert layer.mask is None
    assert layer.options == {}
    layer(x(), context=x(M), attn_bias=torch.zeros(N, M))
    assert set(layer.options) == {"context", "attn_bias"}
    cache = KVCache(N)
    layer(x(), mask=causal(), cache=cache)
    assert layer.options == {"cache": cache}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": torch.zeros(N, D)}, ValueError, "takes x of shape (batch, length, 12), not (5, 12)"),
        ({"x": torch.zeros(B, N, 11)}, ValueError, "takes x of shape (batch, length, 12), not (2, 5, 11)"),
        ({"attn_bias": torch.zeros(N, N), "context": torch.zeros(B, M, D)}, ValueError, "= (2, 3, 5, 7)"),
    ],
)
def test_invalid_shapes_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Masks, biases and contexts alone: see `test_bad_layer_input`, for every mechanism."""
    layer = MultiAttention(D, H)
    for method in (layer, layer.attention_weights):
        with pytest.raises(error, match=re.escape(message)):
            method(**{"x": x(), **options})


def test_apply_weights_checks_the_shape() -> None:
    layer = MultiAttention(D, H)
    for shape in ((B, 2, N, N), (B, H, N, M), (H, N, N)):
        with pytest.raises(ValueError, match=r"\(batch, heads, queries, keys\) = \(2, 3, 5, 5\), not "):
            layer.apply_weights(torch.rand(shape), x())


# causal and the mask


@pytest.mark.parametrize("mask", [sliding_window(2), padding(torch.tensor([3, 5])), from_tensor(torch.eye(N).bool())])
def test_causal_is_combined_with_the_mask(mask: Any) -> None:
    layer = Recorder(D, causal=True)
    layer(x(), mask=mask)
    assert torch.equal(layer.mask.tensor(), (causal() & mask).bind(N).tensor())


def test_causal_refuses_a_context_of_another_length() -> None:
    layer = Recorder(D, causal=True)
    for length in (0, N - 1, M):
        with pytest.raises(ValueError, match=rf"x has {N} tokens and context {length}; build .* give mask=causal\(\)"):
            layer(x(), context=x(length))
    layer(x(), context=x())
    assert layer.mask.is_causal


def test_a_causal_mask_over_a_context_is_aligned_at_the_end() -> None:
    layer = Recorder(D)
    layer(x(), mask=causal(), context=x(M))
    assert torch.equal(layer.mask.tensor()[0, 0], torch.ones(N, M).tril(M - N).bool())


# The pattern of the mechanism


@pytest.mark.parametrize(
    "mask",
    [None, padding(torch.tensor([3, 5])), from_tensor(torch.ones(N, N).triu().bool()), from_tensor(x()[..., :N] > 0)],
)
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_pattern_is_combined_with_causal_and_the_mask(mask: Any, is_causal: bool) -> None:
    layer = Near(D, causal=is_causal)
    layer(x(), mask=mask)
    whole = torch.ones(B, 1, N, N, dtype=torch.bool)
    for rule in (sliding_window(2), mask, causal() if is_causal else None):
        whole = whole if rule is None else whole & rule.materialize(N)
    assert torch.equal(layer.mask.tensor().expand_as(whole), whole)


def test_a_pattern_and_causal_alone_stay_rules() -> None:
    near, causal_layer, plain = Near(D), Recorder(D, causal=True), Recorder(D)
    for layer in (near, causal_layer, plain):
        layer(x())
    assert repr(near.mask.mask) == "sliding_window(2)"
    assert causal_layer.mask.is_causal
    assert plain.mask is plain.attention_pattern(N) is None


def test_the_pattern_gets_the_number_of_keys() -> None:
    layer, cache = Near(D, causal=True), KVCache(N + M)
    layer(x())
    assert layer.pattern_length == N
    Near.forward(other := Near(D), x(), context=x(M))
    assert other.pattern_length == M
    cache.update(torch.zeros(B, N, 1))
    layer(x(M), cache=cache)
    assert layer.pattern_length == N + M
    assert torch.equal(layer.mask.tensor()[0, 0], (causal() & sliding_window((N + M) // 2)).materialize(M, N + M))


def test_a_pattern_bounds_the_window_of_a_cache() -> None:
    cache = KVCache(N, window=2)
    Near(D, causal=True)(x(), cache=cache)
    with pytest.raises(ValueError, match="the cache keeps 1 tokens, but the mask reaches 1 keys back"):
        Near(D, causal=True)(x(), cache=KVCache(N, window=1))
    with pytest.raises(ValueError, match="a cache needs a causal mask"):
        Near(D)(x(), cache=cache)


# Fully masked rows


def test_a_fully_masked_row_is_zero() -> None:
    matrix = torch.ones(N, N, dtype=torch.bool)
    matrix[2] = False
    out = Recorder(D, H)(x(), mask=matrix)
    assert not out[:, 2].any()
    assert out[:, [0, 1, 3, 4]].ne(0).all(-1).all()


def test_a_row_that_one_head_attends_from_is_not_zeroed() -> None:
    layer = MultiAttention(D, H)
    torch.nn.init.ones_(layer.output.bias)
    matrix = torch.zeros(B, H, N, N, dtype=torch.bool)
    matrix[:, 1, 2] = True
    nonzero = layer(x(), mask=matrix).ne(0).any(-1)
    assert nonzero.tolist() == [[False, False, True, False, False]] * B


# attention_weights and apply_weights


@pytest.mark.parametrize("name", supporting("padding", "weights"))
def test_apply_weights_takes_the_mask(name: str) -> None:
    options = {} if registry.entry(name).card.heads == "1" else {"num_heads": 2}
    layer, mask = registry.load(name)(D, **options).double().eval(), padding(torch.tensor([0, 7]))
    torch.nn.init.ones_(layer.output.bias if layer.output.bias is not None else torch.empty(1))
    tokens = torch.randn(B, 11, D, dtype=torch.float64)
    tokens[0] = tokens[1, 7:] = 0.0
    expected = layer(tokens, mask=mask)
    tokens[0] = tokens[1, 7:] = torch.nan
    out = layer.apply_weights(layer.attention_weights(tokens, mask=mask), tokens, mask=mask)
    torch.testing.assert_close(out, expected)
    assert not out[0].any()


def test_underflowing_weights_are_not_a_mask() -> None:
    sinks, sigmoid = SinkAttention(D, H), SigmoidAttention(D, H)
    with torch.no_grad():
        sinks.sink.fill_(200.0)
        for layer in (sinks, sigmoid):
            layer.output.bias.fill_(1.0)
    bias = torch.full((N, N), -200.0)
    for layer, options in ((sinks, {}), (sigmoid, {"attn_bias": bias})):
        weights = layer.attention_weights(x(), **options)
        assert not weights.any()
        assert (layer(x(), **options) == 1).all(), "the output is the bias of the projection"
        torch.testing.assert_close(layer.apply_weights(weights, x()), layer(x(), **options))


# The card


def test_a_card_is_validated() -> None:
    with pytest.raises(ValueError, match="supports names 'casual'; did you mean causal"):
        card("casual")
    with pytest.raises(ValueError, match="supports names 'zzz'; there are: causal, padding,"):
        card("zzz")
    with pytest.raises(ValueError, match=re.escape("write a tuple: ('causal',)")):
        Card(**{**vars(card()), "supports": "causal"})
    with pytest.raises(ValueError, match="kind is 'fast'; it must be one of exact, approximation, another operator"):
        Card(**{**vars(card()), "kind": "fast"})
