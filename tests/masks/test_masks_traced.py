"""Masks of tensors without values: on the meta device, under FakeTensorMode, make_fx and torch.compile.

Sizes are primes: B = 2, H = 3, N = 11.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnlab import masks
from attnlab.masks import BoundMask, Mask
from attnlab.models.multihead import MultiAttention

B, H, N = 2, 3, 11

Maker = Callable[[Tensor, Tensor], Mask]
"""Makes a mask from integers (B,) and Booleans (B, N)."""

RULES: dict[str, Maker] = {
    "causal": lambda n, t: masks.causal(),
    "window": lambda n, t: masks.sliding_window(3),
    "dilated": lambda n, t: masks.dilated(3, 2),
    "every": lambda n, t: masks.strided(3),
    "global tokens": lambda n, t: masks.global_tokens(2),
    "summaries": lambda n, t: masks.block_summary(3),
    "prefix": lambda n, t: masks.prefix(3),
    "prefix per item": lambda n, t: masks.prefix(n),
    "padding": lambda n, t: masks.padding(n),
    "padding, a total": lambda n, t: masks.padding(n, max_length=N),
    "left padding": lambda n, t: masks.padding(n, side="left", max_length=N),
    "padding of queries": lambda n, t: masks.padding(n, mask_queries=True),
    "documents": lambda n, t: masks.documents(t[0].long()),
    "documents per item": lambda n, t: masks.documents(t.int()),
    "packed": lambda n, t: masks.from_cu_seqlens(torch.cat([n[:1] * 0, n.cumsum(0)]), total=N),
    "blocks": lambda n, t: masks.block_local(3, neighbors=1),
    "pattern": lambda n, t: masks.block_sparse(3, t[0, :1] | t[:1, :4, None][0] | t[0, :4]),
    "pattern per head": lambda n, t: masks.block_sparse(
        3, t[:, None, :4, None] | t[:, None, None, :4].expand(B, H, 4, 4)
    ),
    "random blocks": lambda n, t: masks.random_blocks(2, 1, 3),
    "random blocks of a tensor": lambda n, t: masks.random_blocks(2, 1, n.sum()),
    "per head": lambda n, t: masks.per_head([masks.causal(), masks.strided(2), masks.padding(n)]),
    "attention mask": lambda n, t: masks.from_attention_mask(t.long()),
    "key padding mask": lambda n, t: masks.from_key_padding_mask(t),
    "attn_mask": lambda n, t: masks.from_attn_mask(torch.where(t, 0.0, -torch.inf)[:1].expand(N, N)),
    "matrix": lambda n, t: masks.from_tensor(t[:, None].expand(B, N, N)),
    "a negation": lambda n, t: ~masks.padding(n) & masks.causal(),
    "a disjunction": lambda n, t: (masks.causal() | masks.prefix(n)) & masks.from_key_padding_mask(t),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)


def inputs(device: str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.tensor([3, 7]).to(device), (torch.arange(B * N).view(B, N) % 5 > 0).to(device)


def evaluated(make: Maker, lengths: Tensor, bits: Tensor) -> list[Tensor]:
    """The results of all methods that layers call."""
    mask = make(lengths, bits)
    assert isinstance(repr(mask), str)
    bound: BoundMask = mask.bind(N, shape=(B, H), device=lengths.device)
    some = torch.tensor([2, 5], device=lengths.device)
    tiles = [bound.tile(*part) for part in bound.tiles(4)]
    folded = (mask & masks.strided(2)).bind(N, shape=(B, H), device=lengths.device)
    if folded.can_fold:
        tiles += [folded.folded_tile(rows, keys) for rows, keys in folded.tiles(4, one_residue=True)]
    out = bound.zero_fully_masked_rows(torch.ones(B, N, 5, device=lengths.device))
    matrix = mask.materialize(N, device=lengths.device)
    again = mask.bind(N, shape=(B, H), device=lengths.device)  # has no matrix yet
    return [*tiles, again.tile(some, slice(0, N)), out, bound.tensor(), matrix, again.fully_masked()]


@every_rule
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_every_rule_without_values(make: Maker, device: str) -> None:
    """On the meta device, and under fake tensors on a CPU; also in the forward pass of a layer."""
    expected = evaluated(make, *inputs())
    with nullcontext() if device == "meta" else FakeTensorMode():
        result = evaluated(make, *inputs(device))
        layer, x = MultiAttention(6, H, causal=True, device=device), torch.empty(B, N, 6, device=device)
        assert layer(x, mask=make(*inputs(device))).shape == x.shape
    assert [(t.shape, t.dtype, t.device.type) for t in result[-4:]] == [
        (t.shape, t.dtype, device) for t in expected[-4:]
    ]


@pytest.mark.slow
@every_rule
def test_every_rule_is_traced_by_make_fx(make: Maker) -> None:
    """The graph does not contain the traced values."""
    graph = make_fx(lambda n, t: evaluated(make, n, t))(*inputs())
    for values in (inputs(), (torch.tensor([5, 2]), inputs()[1].flip(1))):
        for result, eager in zip(graph(*values)[-4:], evaluated(make, *values)[-4:], strict=True):
            assert torch.equal(result, eager)


@pytest.mark.parametrize(
    ("name", "device", "text"),
    [
        ("padding", "cpu", "padding([3, 7])"),
        ("padding", "meta", "padding(<2>)"),
        ("random blocks of a tensor", "cpu", "random_blocks(2, 1, 10)"),
        ("random blocks of a tensor", "meta", "random_blocks(2, 1, <>)"),
    ],
)
def test_repr_shows_shapes_without_values(name: str, device: str, text: str) -> None:
    assert repr(RULES[name](*inputs(device))) == text
