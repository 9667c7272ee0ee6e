"""The arithmetic of an attention weight gives that weight, in every mechanism and for every option of its scores."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mechanisms import supporting
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import Mask, block_local, documents, from_tensor, padding, per_head, sliding_window
from attnlab.nn.attention import Attention
from attnlab.ops.attention_map import AttentionMap

B, N, D, H = 2, 11, 16, 4
SMALL: dict[str, dict[str, Any]] = {
    "dsa": {"top_k": 3},
    "nsa": {"compress_block": 4, "compress_stride": 2, "select_block": 2, "window_size": 3},
    "reformer": {"chunk_length": 3},
    "nystrom": {"num_landmarks": 3},
    "linformer": {"max_length": 200, "rank": 5},
    "bigbird": {"block_size": 2, "num_random": 1},
    "chunked": {"chunk_size": 4},
    "longformer": {"window_size": 3},
    "slidingwindow": {"window_size": 3},
    "strided": {"stride": 3},
    "performer": {"num_features": 5},
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "positions": ("rotary", "alibi", "t5"),
    "num_kv_heads": (2,),
    "allow_neg_eigval": (True,),
    "attend_current": (True,),
    "alpha": (2.0,),
    "sharing": ("none",),
    "conv_kernel": (3,),
    "inverse": ("exact",),
    "num_groups": (2,),
}
"""Values of options that change the weights; of other mechanisms and of new ones too."""


def build(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    heads = {} if registry.entry(name).card.heads == "1" else {"num_heads": H}
    layer = registry.load(name)(**{"embed_dim": D, **heads, **SMALL.get(name, {}), **options}).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(3))


def layers(name: str) -> Iterator[Attention]:
    card, accepted = registry.entry(name).card, inspect.signature(registry.load(name)).parameters
    yield build(name, **({"causal": True} if "causal" in card.supports else {}))
    if "causal" in card.supports and not card.always_causal:
        yield build(name, causal=False)
    for option, values in CHOICES.items():
        for value in values if option in accepted else ():
            with contextlib.suppress(ValueError, TypeError):  # positions that the mechanism does not have
                yield build(name, **{option: value})


def masks(name: str) -> Iterator[Mask]:
    supports = registry.entry(name).card.supports
    if "padding" in supports:
        yield padding(torch.tensor([7, N]))
    if "segments" in supports:
        yield documents(torch.tensor([0, 0, 0, 1, 1, 0, 1, 1, 2, 2, 2]))
    if "arbitrary_mask" in supports or "mask" in supports:
        yield sliding_window(4)
        yield from_tensor((torch.arange(N) != 5).unsqueeze(1).expand(N, N))
        if registry.entry(name).card.heads != "1":
            yield per_head([sliding_window(3), *[block_local(4)] * (H - 1)])


def assert_explained(weights: AttentionMap, cells: list[tuple[int, int, int, int]], *, run: int = 1) -> None:
    matrix = weights.materialize()
    for n, (batch, head, query, key) in enumerate(cells):
        expected = matrix[batch, head, query, key].item()
        arithmetic = weights.arithmetic(head, query, key, batch)
        where = f"head {head}, query {query}, key {key}, item {batch}:\n{arithmetic.python()}"
        assert abs(arithmetic.result - expected) <= 1e-6 * max(1.0, abs(expected)), (arithmetic.result, expected, where)
        for line in arithmetic.lines:  # JSON has no infinities
            assert all(map(math.isfinite, line.value if isinstance(line.value, list) else [line.value])), line
        if n < run:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(arithmetic.python(), {})
            assert float(printed.getvalue()) == arithmetic.result


def cells(weights: AttentionMap, count: int = 9) -> list[tuple[int, int, int, int]]:
    generator = torch.Generator().manual_seed(5)
    size = math.prod(weights.shape)
    some = torch.randint(size, (count,), generator=generator)
    last = [(0, 0, weights.shape[2] - 1, 0), (1, weights.shape[1] - 1, weights.shape[2] - 1, weights.shape[3] - 1)]
    places = torch.unravel_index(some, weights.shape)
    return [*last, *(tuple(int(axis[n]) for axis in places) for n in range(count))]  # type: ignore[misc]


@pytest.mark.parametrize("name", supporting("weights"))
def test_the_arithmetic_gives_the_weight(name: str) -> None:
    for layer in layers(name):
        weights = layer.attention_map(tokens())
        assert_explained(weights, cells(weights))
        for option, value in {"temperature": 1.7, "scale": False, "softcap": 0.3, "sink": 0.5}.items():
            if option in weights.changes:
                changed = weights.with_scores(**{option: value})
                assert_explained(changed, cells(changed, 3), run=0)


@pytest.mark.parametrize("name", supporting("weights"))
def test_the_arithmetic_of_masked_weights(name: str) -> None:
    near = [(item, 0, query, query) for item in (0, 1) for query in (1, 3, 5, 9)]
    for layer in layers(name):
        for mask in masks(name):
            weights = layer.attention_map(tokens(), mask=mask)
            assert_explained(weights, [*near, *cells(weights, 5)])


@pytest.mark.parametrize("name", supporting("weights"))
def test_the_arithmetic_of_long_rows_is_short(name: str) -> None:
    length = 131
    weights = build(name).attention_map(tokens(length))
    assert_explained(weights, [(1, 0, length - 1, key) for key in (2, 67, length - 7, length - 1)])
    for line in weights.arithmetic(0, length - 1, 2).lines:
        assert isinstance(line.value, float) or len(line.value) <= 64


@pytest.mark.parametrize("name", supporting("weights", "context"))
def test_the_arithmetic_with_a_context(name: str) -> None:
    weights = build(name).attention_map(tokens(), context=tokens(7))
    assert weights.shape[2:] == (N, 7)
    assert_explained(weights, cells(weights))


def test_the_arithmetic_of_a_long_stick() -> None:
    weights = build("stickbreaking").attention_map(0.2 * tokens(131), attn_bias=torch.full((131, 131), -5.0))
    assert weights.materialize()[0, 0, 130, 60] > 1e-3  # 70 nearer keys leave something
    assert_explained(weights, [(0, 0, 130, 60), (0, 0, 130, 67)])
