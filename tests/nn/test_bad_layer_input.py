"""Every mechanism refuses masks, biases, contexts and caches that do not fit, with the same errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor

from attnlab import KVCache
from attnlab.catalog import registry
from attnlab.masks import block_sparse, causal, documents, from_key_padding_mask, from_tensor, padding, prefix
from attnlab.nn.attention import Attention

B, N, D = 2, 5, 24


def every(*capabilities: str) -> pytest.MarkDecorator:
    """The representatives that have these capabilities."""
    return pytest.mark.parametrize("name", supporting(*capabilities, among=REPRESENTATIVES))


any_mask = every("arbitrary_mask")


def layer(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(embed_dim=D, **options).eval()


def x(length: int = N, batch: int = B) -> Tensor:
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(length))


def ones(*shape: int, device: str = "cpu") -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device)


def integers(*values: int, device: str = "cpu") -> Tensor:
    return torch.tensor(values, device=device)


MASKS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # shapes
    "fewer keys": (lambda: ones(N, 4), ValueError, "the mask is 5 x 4 (queries x keys), but there are 5 queries and 5"),
    "more queries": (lambda: ones(6, N), ValueError, "the mask is 6 x 5 (queries x keys)"),
    "another batch": (lambda: ones(3, N, N), ValueError, "does not fit (batch, heads, queries, keys) = (2, "),
    "another number of heads": (lambda: ones(B, 7, N, N), ValueError, "does not fit (batch, heads, queries, keys)"),
    "one axis": (lambda: ones(N), ValueError, "a mask has the shape (queries, keys)"),
    "five axes": (lambda: ones(1, 1, 1, N, N), ValueError, "a mask has the shape (queries, keys)"),
    "one row per item": (lambda: ones(B, N), ValueError, "use from_attention_mask where True means a real token"),
    "lengths above the number of keys": (
        lambda: padding(integers(3, 6)),
        ValueError,
        "counts 6 tokens in one sequence",
    ),
    "lengths of another batch": (lambda: padding(integers(1, 2, 3)), ValueError, "does not fit"),
    "keys of another batch": (lambda: from_key_padding_mask(~ones(3, N)), ValueError, "does not fit"),
    "keys of another length": (lambda: from_key_padding_mask(~ones(B, 4)), ValueError, "but there are 5 keys"),
    "too few documents": (lambda: documents(integers(0, 0, 1)), ValueError, "has 3 positions, but there are 5"),
    "a rule and a matrix": (lambda: causal() & ones(N, 4), ValueError, "the mask is 5 x 4"),
    # dtypes
    "floats": (lambda: torch.zeros(N, N), TypeError, "to add values to the scores, give them as attn_bias="),
    "integers": (lambda: torch.ones(N, N, dtype=torch.long), TypeError, "use masks.from_attention_mask for 1 ="),
    "a string": (lambda: "causal", TypeError, "a mask is an attnlab.masks.Mask or a Boolean tensor, not str"),
    "lists": (lambda: [[True] * N] * N, TypeError, "not list"),
    # devices
    "a matrix on another device": (
        lambda: ones(N, N, device="meta"),
        ValueError,
        "the mask is on meta, the tokens are on cpu",
    ),
    "lengths on another device": (
        lambda: padding(integers(2, 3, device="meta")),
        ValueError,
        "move it with mask.to(...)",
    ),
    "lengths on another device, for queries too": (
        lambda: padding(integers(2, 3, device="meta"), mask_queries=True),
        ValueError,
        "move it with mask.to(...)",
    ),
    "documents on another device": (lambda: documents(torch.zeros(N, device="meta").long()), ValueError, "is on meta"),
    "a prefix on another device": (lambda: ~prefix(integers(2, 3, device="meta")), ValueError, "is on meta"),
    "a pattern on another device": (lambda: block_sparse(2, ones(3, 3, device="meta")), ValueError, "is on meta"),
    "one of two on another device": (
        lambda: causal() & (from_tensor(ones(N, N)) | ones(N, N, device="meta")),
        ValueError,
        "is on meta",
    ),
}


@any_mask
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("case", MASKS)
def test_a_mask_that_does_not_fit(name: str, is_causal: bool, case: str) -> None:
    make, error, message = MASKS[case]
    attend = layer(name, causal=is_causal)
    for method in (attend, attend.attention_weights, attend.attention_map):
        with pytest.raises(error, match=re.escape(message)):
            method(x(), mask=make())


@any_mask
@pytest.mark.parametrize("long", [5, 211])
def test_a_mask_may_be_moved(name: str, long: int) -> None:
    attend, inputs = layer(name), x(long)
    lengths = integers(3, long)
    elsewhere = padding(lengths.to("meta"), mask_queries=True) & from_tensor(ones(long, long, device="meta"))
    with pytest.raises(ValueError, match="move it with"):
        attend(inputs, mask=elsewhere)
    here = (padding(lengths, mask_queries=True) & ones(long, long)).to("cpu")
    assert attend(inputs, mask=here).isfinite().all()


BIASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "Boolean": (lambda: ones(N, N), TypeError, "to select the keys to attend to use mask="),
    "integers": (lambda: torch.zeros(N, N, dtype=torch.long), TypeError, "must be a float tensor"),
    "fewer keys": (lambda: torch.zeros(N, 4), ValueError, "bias has shape (5, 4), which does not broadcast to"),
    "another batch": (lambda: torch.zeros(3, 1, N, N), ValueError, "bias has shape (3, 1, 5, 5)"),
    "five axes": (lambda: torch.zeros(1, 1, 1, 1, 1), ValueError, "does not broadcast"),
    "on another device": (
        lambda: torch.zeros(N, N, device="meta"),
        ValueError,
        "bias is on meta, x on cpu; move it",
    ),
}


@every("attn_bias")
@pytest.mark.parametrize("case", BIASES)
def test_a_bias_that_does_not_fit(name: str, case: str) -> None:
    make, error, message = BIASES[case]
    for method in (layer(name), layer(name, causal=True).attention_weights):
        with pytest.raises(error, match=re.escape(message)):
            method(x(), attn_bias=make())


@every("arbitrary_mask", "context")
def test_causal_with_a_context_of_another_length(name: str) -> None:
    """causal=True refuses it; with mask=causal() the last query is aligned with the last key."""
    attend = layer(name)
    is_causal = layer(name, causal=True)
    weights = torch.rand(B, attend.num_heads, N, 7)
    for context in (x(7), x(3), x(0)):
        for method in (
            is_causal,
            is_causal.attention_weights,
            is_causal.attention_map,
            lambda x, context: is_causal.apply_weights(weights, x, context=context),
        ):
            with pytest.raises(ValueError, match=rf"x has 5 tokens and context {context.shape[1]}; .*mask=causal\(\)"):
                method(x(), context=context)
    is_causal.load_state_dict(attend.state_dict())
    torch.testing.assert_close(is_causal(x(), context=x()), attend(x(), context=x(), mask=causal()))
    attended = attend.attention_weights(x(), context=x(7), mask=causal()).any(1)
    assert torch.equal(attended, ones(B, N, 7).tril(2))


@every("context")
def test_a_context_that_does_not_fit(name: str) -> None:
    attend = layer(name)
    for context in (x(batch=3), x()[0], x()[..., :7]):
        for method in (attend, attend.attention_weights):
            with pytest.raises(ValueError, match=r"context must have shape \(2, length, 24\), not "):
                method(x(), context=context)
    with pytest.raises(ValueError, match="context is on meta, x on cpu; move it"):
        attend(x(), context=x().to("meta"))


# Caches

CACHES: dict[str, tuple[Callable[[Attention], tuple[Attention, Tensor, dict[str, Any]]], str]] = {
    "full": (
        lambda layer: (layer, x(3), {}),
        "has seen 5 of at most 7 tokens, and 3 more do not fit; make it with KVCache(",
    ),
    "of another batch": (
        lambda layer: (layer, x(1, batch=3), {}),
        "holds 2 sequences, not 3; use reorder(), or reset()",
    ),
    "on another device": (
        lambda layer: (copy.deepcopy(layer).to("meta"), x(1).to("meta"), {}),
        "the cache is on cpu, x on meta; reset() it to move",
    ),
    "with a mask of the new token only": (lambda layer: (layer, x(1), {"mask": ones(1, 1) & ones(1, 5)}), "6 keys"),
    "with a bias of the new token only": (
        lambda layer: (layer, x(1), {"attn_bias": torch.zeros(1, 5)}),
        "keys) = (2, ",
    ),
}


@every("cache")
@pytest.mark.parametrize("case", CACHES)
@torch.no_grad()
def test_a_cache_that_does_not_fit_stays_as_it_was(name: str, case: str) -> None:
    attend, (make, message), tokens = layer(name, causal=True), CACHES[case], x(7)
    cache = attend.make_cache(7)
    first = attend(tokens[:, :5], cache=cache)
    other, inputs, options = make(attend)
    capability = {"mask": "arbitrary_mask", "attn_bias": "attn_bias"}.get(next(iter(options), ""), "cache")
    if not attend.supports(capability) or (case == "full" and not isinstance(cache, KVCache)):
        pytest.skip("it does not take this argument, or its state has no capacity")
    with pytest.raises(ValueError, match=re.escape(message)):
        other(inputs, cache=cache, **options)
    rest = attend(tokens[:, 5:], cache=cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), attend(tokens), rtol=0, atol=1e-5)
