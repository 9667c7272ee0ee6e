"""When a padded batch is packed, and when not. That packing changes nothing the conformance suite says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnlab import explain_path
from attnlab.masks import Mask, causal, dilated, padding, prefix, sliding_window, strided
from attnlab.models.multihead import MultiAttention

B, N, D, H = 3, 199, 12, 3
LENGTHS = torch.tensor([199, 67, 101])


def paths(mask: Mask, layer: MultiAttention | None = None, lengths: Tensor = LENGTHS, **given: Tensor) -> list[str]:
    layer = MultiAttention(D, H) if layer is None else layer
    return [path.name for path in explain_path(layer, torch.randn(B, N, D), mask=mask, **given)]


REAL = padding(LENGTHS, mask_queries=True)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (REAL, ["packed", "segments"]),
        (causal() & REAL, ["packed", "segments"]),
        (REAL & sliding_window(5), ["packed", "window"]),
        (padding(LENGTHS, side="left", max_length=N, mask_queries=True), ["packed", "segments"]),
        (padding(LENGTHS), ["items"]),
        (REAL & prefix(7), ["tiles"]),
        (REAL | causal(), ["matrix"]),
        (padding(torch.tensor([199, 198, 199]), mask_queries=True), ["matrix"]),
        (padding(torch.tensor([20, 1, 3]), mask_queries=True), ["items"]),
        (padding(torch.tensor([0, 0, 0]), mask_queries=True), ["items"]),
        (causal() & REAL & strided(7), ["tiles"]),
        (causal() & REAL & dilated(3, 7), ["packed", "window"]),
        (padding(torch.tensor([67]), mask_queries=True), ["matrix"]),
    ],
    ids=str,
)
def test_what_is_packed(mask: Mask, expected: list[str]) -> None:
    assert paths(mask) == expected


def test_what_a_packed_row_cannot_have() -> None:
    assert paths(REAL, attn_bias=torch.zeros(N, N)) == ["items"]
    assert paths(REAL, context=torch.randn(B, N, D)) == ["items"]
    assert paths(REAL, MultiAttention(D, H, dropout=0.1))[0] == "packed"
    assert paths(REAL, MultiAttention(D, H, dropout=0.1).eval()) == ["packed", "segments"]
    with torch.autocast("cpu", torch.bfloat16):
        assert paths(REAL) == ["items"]


def test_the_padding_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows = MultiAttention(D, H), []
    layer.qkv.register_forward_hook(lambda _, given, __: rows.append(tuple(given[0].shape)))
    layer(torch.randn(B, N, D), mask=REAL)
    assert rows == [(1, 367, D)]
