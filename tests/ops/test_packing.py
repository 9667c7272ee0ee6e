"""When a padded batch is packed; the conformance suite checks that packing does not change the output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnlab import explain_path
from attnlab.masks import Mask, causal, dilated, padding, prefix, sliding_window, strided
from attnlab.models.multihead import MultiAttention

B, N, D, H = 3, 199, 12, 3
LENGTHS = torch.tensor([199, 67, 101])


def backends(
    mask: Mask, layer: MultiAttention | None = None, lengths: Tensor = LENGTHS, **options: Tensor
) -> list[str]:
    layer = MultiAttention(D, H) if layer is None else layer
    return [record.name for record in explain_path(layer, torch.randn(B, N, D), mask=mask, **options)]


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
def test_which_masks_are_packed(mask: Mask, expected: list[str]) -> None:
    assert backends(mask) == expected


def test_which_calls_are_not_packed() -> None:
    assert backends(REAL, attn_bias=torch.zeros(N, N)) == ["items"]
    assert backends(REAL, context=torch.randn(B, N, D)) == ["items"]
    assert backends(REAL, MultiAttention(D, H, dropout=0.1))[0] == "packed"
    assert backends(REAL, MultiAttention(D, H, dropout=0.1).eval()) == ["packed", "segments"]
    with torch.autocast("cpu", torch.bfloat16):
        assert backends(REAL) == ["items"]


def test_the_padding_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rows = MultiAttention(D, H), []
    layer.qkv.register_forward_hook(lambda _, inputs, __: rows.append(tuple(inputs[0].shape)))
    layer(torch.randn(B, N, D), mask=REAL)
    assert rows == [(1, 367, D)]


def test_a_packed_token_without_keys_returns_zeros() -> None:
    layer, x, earlier = MultiAttention(D, H), torch.randn(B, N, D), causal() & ~sliding_window(1)
    torch.nn.init.normal_(layer.output.bias)
    assert backends(REAL & earlier, layer)[0] == "packed"
    out = layer(x, mask=REAL & earlier)
    assert not out[:, 0].any()
    torch.testing.assert_close(out[2, :101], layer(x[2:, :101], mask=earlier)[0])
