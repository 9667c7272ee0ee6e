"""The attention matrix of a recurrence, and a recurrent mechanism under the conformance suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scans import KINDS, H, scan_case
from torch import Tensor

from attnlab import check_attention
from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import Attention, make_linear
from attnlab.nn.cache import RecurrentState
from attnlab.ops.attention_map import CHUNK
from attnlab.ops.scan import ScanMap, linear_scan


def arguments(kind: str, N: int) -> tuple[dict[str, Tensor], Tensor]:
    case = scan_case(kind, N)
    del case["state"]
    return case, case.pop("v")


@pytest.mark.parametrize("kind", KINDS)
def test_scan_map_matches_the_scan(kind: str) -> None:
    case, v = arguments(kind, 83)
    scan_map = ScanMap(**case)
    weights = scan_map.materialize()
    torch.testing.assert_close(weights @ v, linear_scan(**case, v=v)[0], rtol=1e-9, atol=1e-9)
    assert not weights.triu(1).any()
    torch.testing.assert_close(scan_map.materialize(rows=[40, 2], heads=[1]), weights[:, [1]][:, :, [40, 2]])
    torch.testing.assert_close(scan_map.pooled(10)[..., 3], weights[..., 30:40].sum(-1))
    torch.testing.assert_close(torch.cat([part for _, part in scan_map.stream(19)], 2), weights)
    torch.testing.assert_close(scan_map.top(3)[0], weights.topk(3, -1).values)


def test_scan_map_streams_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = arguments("delta rule", 2 * CHUNK + 5)
    scan_map, widths = ScanMap(**case), []
    apply = ScanMap.apply
    monkeypatch.setattr(ScanMap, "apply", lambda self, v: widths.append(v.shape[-1]) or apply(self, v))
    first = next(scan_map.stream())[1]
    assert first.shape == (2, H, CHUNK, 2 * CHUNK + 5)
    assert widths == [CHUNK], "later rows are not computed, and keys are computed one chunk at a time"


def test_scan_map_refuses_dropout() -> None:
    case, v = arguments("plain", 7)
    with pytest.raises(ValueError, match=r"a recurrence has no attention weights to drop; dropout must be 0, not 0\.1"):
        ScanMap(**case).apply(v, dropout=0.1)


class Recurrent(Attention):
    """The gated delta rule per head."""

    card = replace(MultiAttention.card, kind="another operator", supports=("causal", "cache", "weights"))
    cache_type = RecurrentState

    def __init__(
        self, embed_dim: int, num_heads: int = 3, *, causal: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal)
        self.qkv = make_linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        self.gates = make_linear(embed_dim, 2 * num_heads, device=device, dtype=dtype)
        self.output = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def _parts(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        decay, beta = self.gates(x).unflatten(-1, (2, -1)).permute(2, 0, 3, 1)
        return {"q": q, "k": F.normalize(k, dim=-1), "log_decay": F.logsigmoid(decay), "beta": beta.sigmoid()}, v

    def _forward(self, x: Tensor, mask: BoundMask | None, cache: RecurrentState | None = None) -> Tensor:
        case, v = self._parts(x)
        state = cache.state[0] if cache is not None and cache.state else None
        out, state = linear_scan(**case, v=v, state=state)
        if cache is not None:
            cache.replace(x.shape[1], state)
        return self.output(out.transpose(1, 2).flatten(2))

    def _build_map(self, x: Tensor, mask: BoundMask | None, *args: Any, **more: Any) -> ScanMap:
        return ScanMap(**self._parts(x)[0])

    def _apply_weights(self, weights: Tensor, x: Tensor) -> Tensor:
        return self.output((weights @ self._parts(x)[1]).transpose(1, 2).flatten(2))


def test_a_recurrence_passes_the_conformance_suite() -> None:
    report = check_attention(AlwaysCausal, fast=True)
    for check in (
        "cache_crop_and_reorder",
        "cache_matches_full_pass",
        "attention_map_matches_weights",
        "weights_reproduce_output",
    ):
        assert report[check].outcome == "pass", report[check]


class AlwaysCausal(Recurrent):
    """Without the option causal=False."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype)


@torch.no_grad()
def test_the_state_does_not_grow() -> None:
    layer, cache = Recurrent(12).double(), RecurrentState()
    sizes = set()
    for _ in range(3):
        layer(torch.randn(2, 100, 12, dtype=torch.float64), cache=cache)
        sizes.add(cache.bytes)
    assert sizes == {2 * 3 * 4 * 4 * 8}
