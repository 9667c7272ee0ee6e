"""A token that is NaN makes NaN of the rows that may look at it, and of no other: no 0 · NaN in a fused kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import registry
from attnlab.attention import Attention
from attnlab.engines.paths import explain_path
from attnlab.masks import BoundMask, Mask, causal, documents, from_tensor, padding, prefix, window
from attnlab.models.multihead import MultiAttention

B, D = 2, 24


def layer(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(embed_dim=D, **options).double().eval()


def tokens(length: int) -> Tensor:
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


def masks(length: int) -> dict[str, Mask | None]:
    lengths = torch.tensor([length - 2, length // 2])
    scattered = torch.rand(B, length, length, generator=torch.Generator().manual_seed(0)) > 0.5
    return {
        "none": None,
        "padding": padding(lengths),
        "padding on the left": padding(lengths, side="left", total=length),
        "padding of queries too": padding(lengths, queries=True),
        "window": window(3),
        "documents": documents(torch.arange(length) // 3),
        "prefix": prefix(2),
        "matrix": from_tensor(scattered),
    }


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("look_back", [False, True])
@pytest.mark.parametrize("length", [7, 211])
@pytest.mark.parametrize("case", masks(7))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_stays_in_the_rows_that_may_look_at_it(
    name: str, look_back: bool, length: int, case: str, bad: float
) -> None:
    attend, x, mask = layer(name, causal=look_back), tokens(length), masks(length)[case]
    clean = attend(x, mask=mask)
    permitted = torch.ones(B, length, length, dtype=torch.bool)
    for rule in (mask, causal() if look_back else None, attend.pattern(length)):
        if rule is not None:
            permitted = permitted & rule.bind(length).tensor().any(1)
    for place in (0, length // 3, length - 1):
        broken = x.clone()
        broken[0, place, 5] = bad
        out = attend(broken, mask=mask)
        lost = torch.zeros(B, length, dtype=torch.bool)
        lost[0] = permitted[0, :, place]
        lost[0, place] = permitted[0, place].any()  # its own row, unless that may look at nothing
        assert torch.equal(out.isnan().any(-1), lost)
        torch.testing.assert_close(out[~lost], clean[~lost])


@pytest.mark.parametrize("name", registry.names())
def test_gradients_of_the_other_rows_are_finite(name: str) -> None:
    attend, x = layer(name, causal=True), tokens(11)
    x[0, 6] = torch.nan
    x.requires_grad_()
    out = attend(x)
    out[~out.isnan()].square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in attend.parameters())


@pytest.mark.parametrize("name", registry.names())
def test_mix_of_weights_is_still_forward(name: str) -> None:
    attend, x = layer(name), tokens(11)
    x[0, 6] = torch.nan
    mask = padding(torch.tensor([6, 11]))
    torch.testing.assert_close(attend.mix(attend.weights(x, mask=mask), x), attend(x, mask=mask), equal_nan=True)
    assert not attend.mix(attend.weights(tokens(11), mask=mask), x)[0].isnan().any()
    assert attend.mix(attend.weights(tokens(11)), x)[0].isnan().all()


def test_a_padded_context_may_hold_nan() -> None:
    attend, x, context = MultiAttention(D, 3).double(), tokens(5), tokens(13)
    mask = padding(torch.tensor([9, 13]))
    clean = attend(x, context=context, mask=mask)
    context[0, 9:] = torch.nan
    torch.testing.assert_close(attend(x, context=context, mask=mask), clean)
    context[1, 0] = torch.nan
    assert attend(x, context=context, mask=mask).isnan().any(-1).tolist() == [[False] * 5, [True] * 5]


def test_large_numbers_are_no_nan() -> None:
    attend, x = MultiAttention(D, 3, causal=True), torch.full((1, 7, D), 3e38)  # their sum is infinite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiAttention, "_forward", lambda self, x, mask: x)
        assert torch.equal(attend(x), x)


def test_without_nan_the_way_is_the_same() -> None:
    attend, asked = MultiAttention(D, 3, causal=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundMask, "tensor", lambda self: asked.append(self))
        assert explain_path(attend, torch.randn(1, 1000, D))[0].name == "causal"
    assert not asked
