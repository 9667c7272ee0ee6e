"""Empty batches, sequences and contexts: every mechanism returns an empty or a zero tensor under every mask.

Sizes are primes: B = 3, N = 5, M = 7, D = 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor

from attnlab import masks
from attnlab.catalog import registry
from attnlab.masks import Mask

D = 12
EMPTY = [(0, 5, 7), (3, 0, 7), (3, 5, 0), (0, 0, 0), (0, 131, 137)]
"""(B, N, M) with at least one size of zero; the last is long enough for the tiled backends."""


def rules(B: int, M: int) -> dict[str, Mask | None]:
    """Every rule for this batch and this many keys."""
    lengths = (M - 2 * torch.arange(B)).clamp(min=0)
    ones = torch.ones(B, M, dtype=torch.bool)
    count = -(-M // 4)
    return {
        "none": None,
        "causal": masks.causal(),
        "window": masks.sliding_window(3),
        "dilated": masks.causal() & masks.dilated(3, 2),
        "strided": masks.strided(3),
        "global tokens": masks.global_tokens(2) | masks.sliding_window(2),
        "summaries": masks.block_summary(3),
        "prefix": masks.prefix(2) | masks.causal(),
        "prefix per item": masks.prefix(lengths),
        "padding": masks.padding(lengths),
        "left padding": masks.padding(lengths, side="left", max_length=M),
        "padding of queries": masks.padding(lengths, mask_queries=True),
        "causal & padding of queries": masks.causal() & masks.padding(lengths, mask_queries=True),
        "documents": masks.documents(torch.arange(M) // 3),
        "documents per item": masks.documents(torch.arange(B * M).view(B, M) // 3),
        "blocks": masks.block_local(4),
        "pattern": masks.block_sparse(4, torch.ones(count, count, dtype=torch.bool)),
        "random blocks": masks.random_blocks(2, 1, 3),
        "attention mask": masks.from_attention_mask(ones.long()),
        "attention mask & causal": masks.from_attention_mask(ones.long()) & masks.causal(),
        "key padding mask": ~masks.from_key_padding_mask(~ones),
        "per head": masks.per_head([masks.causal(), masks.strided(2)]),
    }


def layers(name: str) -> Iterator[tuple[Any, bool]]:
    """Each way to build the mechanism, with two heads where it has heads."""
    mechanism: Callable[..., Any] = registry.load(name)
    for is_causal in (False, True) if "causal" in registry.load(name).card.supports else (False,):
        torch.manual_seed(0)
        sizes = {"num_heads": 2} if "num_heads" in mechanism.__init__.__annotations__ else {}  # type: ignore[misc]
        yield mechanism(D, **sizes, causal=is_causal), is_causal


def finite(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is not None
        assert tensor.isfinite().all()


@pytest.mark.parametrize(("B", "N", "M"), EMPTY)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_an_empty_batch_sequence_or_context(name: str, B: int, N: int, M: int) -> None:
    for layer, is_causal in layers(name):
        contexts = [None, torch.randn(B, M, D)] if layer.supports("context") and not is_causal else [None]
        for context in contexts:
            keys = N if context is None else M
            for rule, mask in rules(B, keys).items():
                if mask is not None and (
                    not layer.supports("arbitrary_mask") or mask.num_heads not in (1, layer.num_heads)
                ):
                    continue
                options = {"mask": mask} | ({} if context is None else {"context": context})
                x = torch.randn(B, N, D, requires_grad=True)
                out = layer(x, **options)
                assert out.shape == (B, N, D), rule
                out.sum().backward()
                finite(out, *(t.grad for t in (x, *layer.parameters()) if t.grad is not None))
                assert x.grad is not None or not x.numel()
                if layer.supports("weights"):
                    assert layer.attention_weights(x, **options).shape == (B, layer.num_heads, N, keys), rule
                    assert layer.attention_map(x, **options).materialize().shape == (B, layer.num_heads, N, keys), rule
                if not keys:
                    assert not out.any(), rule


@pytest.mark.parametrize("name", supporting("cache", among=REPRESENTATIVES))
def test_an_empty_batch_or_step_with_a_cache(name: str) -> None:
    for layer, is_causal in layers(name):
        if not is_causal and not layer.supports("arbitrary_mask"):
            continue
        mask = None if is_causal else masks.causal()
        with torch.no_grad():
            cache = layer.make_cache(7)
            for B, N in ((0, 5), (0, 0), (0, 1)):
                assert layer(torch.randn(B, N, D), mask=mask, cache=cache).shape == (B, N, D)
            cache, x = layer.make_cache(7), torch.randn(3, 5, D)
            steps = [layer(part, mask=mask, cache=cache) for part in x.split([0, 3, 0, 2], 1)]
            torch.testing.assert_close(torch.cat(steps, 1), layer(x, mask=mask))
