"""The content of padded positions, NaN included, affects no other position and no gradient."""

from __future__ import annotations

import pytest
import torch
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import Mask, causal, from_attention_mask, from_key_padding_mask, padding
from attnlab.nn.attention import Attention

B, N, D = 2, 11, 48
LENGTHS = torch.tensor([11, 4])
REAL = torch.arange(N) < LENGTHS[:, None]
LEFT = torch.arange(N) >= N - LENGTHS[:, None]
HOLES = torch.arange(N) % 3 != LENGTHS[:, None] % 3

MASKS: dict[str, tuple[Mask, Tensor]] = {
    "padding": (padding(LENGTHS), REAL),
    "padding on the left": (padding(LENGTHS, side="left", max_length=N), LEFT),
    "padded queries": (padding(LENGTHS, mask_queries=True), REAL),
    "key padding mask": (from_key_padding_mask(~HOLES), HOLES),
    "attention mask": (from_attention_mask(LEFT.long()), LEFT),
    "with another rule": (causal() & padding(LENGTHS), REAL),
}
CONTENT = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "huge": 1e38}


def layer(name: str, dtype: torch.dtype = torch.float32, **options: object) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(embed_dim=D, **options).to(dtype)  # type: ignore[arg-type]


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("content", CONTENT)
def test_padding_content_affects_no_output_and_no_gradient(name: str, case: str, content: str) -> None:
    (mask, real), x = MASKS[case], tokens()
    if case == "with another rule" and "arbitrary_mask" not in registry.entry(name).card.supports:
        pytest.skip("it does not take every mask")
    results = []
    for bad in (0.0, CONTENT[content]):
        attend = layer(name, causal=case == "padding on the left")
        inputs = x.masked_fill(~real.unsqueeze(-1), bad).requires_grad_()
        out = attend(inputs, mask=mask)
        (out[real] ** 2).sum().backward()
        assert inputs.grad is not None
        assert not inputs.grad[~real].isnan().any()
        results.append([out[real], inputs.grad[real], *(p.grad for p in attend.parameters() if p.grad is not None)])
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(dirty, clean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_padding_content_in_low_precision(name: str, dtype: torch.dtype) -> None:
    attend, x = layer(name, dtype).eval(), tokens(137).to(dtype)
    lengths = torch.tensor([137, 71])
    real = torch.arange(137) < lengths[:, None]
    outs = []
    for bad in (0.0, torch.finfo(dtype).max, torch.nan):
        out = attend(x.masked_fill(~real.unsqueeze(-1), bad), mask=padding(lengths))
        outs.append(out[real])
    for dirty in outs[1:]:
        torch.testing.assert_close(dirty, outs[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", supporting("cache"))
@torch.no_grad()
def test_padding_content_on_the_left_with_a_cache(name: str) -> None:
    mask = padding(LENGTHS, side="left", max_length=N)
    attend = layer(name, causal=True).eval()
    outs = []
    for bad in (0.0, torch.nan):
        x, cache = tokens().masked_fill(~LEFT.unsqueeze(-1), bad), attend.make_cache(N)
        parts = [attend(part, mask=mask, cache=cache) for part in x.split([8, 1, 2], 1)]
        outs.append(torch.cat(parts, 1)[LEFT])
    torch.testing.assert_close(outs[1], outs[0])
