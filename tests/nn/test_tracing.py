"""No forward pass reads a value: every backend works with fake tensors, symbolic traces and the meta device.

The check ``traceable`` traces every mechanism; here are one mechanism per code path and every kind of mask.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnlab.catalog import registry
from attnlab.masks import (
    Mask,
    block_sparse,
    causal,
    documents,
    from_key_padding_mask,
    from_tensor,
    padding,
    prefix,
    sliding_window,
)
from attnlab.nn.attention import Attention

B, N, D = 2, 211, 24


def masks() -> dict[str, Mask | None]:
    lengths, position = torch.tensor([N, 83]), torch.arange(N)
    return {
        "none": None,
        "padding": padding(lengths),
        "padding on the left": padding(lengths, side="left", max_length=N),
        "padded queries": padding(lengths, mask_queries=True),
        "key padding": from_key_padding_mask(position >= lengths[:, None]),
        "window": causal() & sliding_window(7) & padding(lengths),
        "documents": documents(position // 50),
        "prefix": causal() | prefix(torch.tensor([3, 5])),
        "blocks": block_sparse(16, torch.ones(14, 14, dtype=torch.bool).tril()),
        "matrix": from_tensor(torch.ones(N, N, dtype=torch.bool).tril()),
    }


def build(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(embed_dim=D, **options)


ARBITRARY = {"window", "prefix", "blocks", "matrix"}


def every_mechanism_with(*cases: str) -> pytest.MarkDecorator:
    """The representatives under each of these masks that they take."""
    takes_all = supporting("arbitrary_mask")
    pairs = [(n, case) for n in REPRESENTATIVES for case in cases if n in takes_all or case not in ARBITRARY]
    return pytest.mark.parametrize(("name", "case"), pairs)


@every_mechanism_with(*masks())
@pytest.mark.parametrize(("is_causal", "train"), [(True, True), (False, False)])
def test_fake_tensors(name: str, case: str, is_causal: bool, train: bool) -> None:
    with FakeTensorMode():
        layer = build(name, causal=is_causal, dropout=0.1).train(train)
        x = torch.empty(B, N, D, requires_grad=train)
        out = layer(x, mask=masks()[case])
        assert out.shape == (B, N, D)
        if train:
            out.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape


@every_mechanism_with("none", "padding", "window", "prefix")
@pytest.mark.slow
def test_a_trace_matches_eager(name: str, case: str) -> None:
    layer, x = build(name, causal=True).eval(), torch.randn(B, N, D)

    def run(x: Tensor) -> Tensor:
        return layer(x, mask=masks()[case])

    with torch.no_grad():
        traced = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
        other = torch.randn(B, N, D, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(traced(other), run(other), rtol=1e-4, atol=1e-5)


@every_mechanism_with(*masks())
def test_the_meta_device(name: str, case: str) -> None:
    layer, mask = build(name, causal=True, device="meta"), masks()[case]
    out = layer(torch.empty(B, N, D, device="meta"), mask=None if mask is None else mask.to("meta"))
    assert out.is_meta
    assert out.shape == (B, N, D)
