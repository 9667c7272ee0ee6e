"""Retention: the worked example, the decays, the rotation in a loop, positions in a cache, and what is refused."""

from __future__ import annotations

import cmath
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab import masks
from attnlab.models.retention import Retention
from attnlab.nn.attention import UnsupportedError

B, N, H, d, w = 2, 11, 3, 4, 5
D = H * d


def made(**options: Any) -> Retention:
    torch.manual_seed(0)
    return perturbed(Retention(D, H, value_dim=w, **options))


def test_the_worked_example() -> None:
    layer = Retention(4, 1, shortest_memory=2, positions="none", output_norm=False, output_gate="none")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.qkv.weight[0, 2], layer.qkv.weight[4, 0], layer.qkv.weight[8, 1] = 2, 1, 1
        layer.output.weight[0, 0] = 1
    x = torch.tensor([[[4.0, 21, 1, 0], [2, 42, 1, 0], [1, 63, 1, 0]]])
    assert layer(x)[0, :, 0].tolist() == pytest.approx([84, 126, 126])
    assert layer.attention_weights(x)[0, 0].flatten().tolist() == pytest.approx([4, 0, 0, 2, 2, 0, 1, 1, 1])
    packed = layer(x, mask=masks.documents(torch.tensor([0, 0, 1])))
    assert packed[0, :, 0].tolist() == pytest.approx([84, 126, 63])


def test_the_decays() -> None:
    def decays(layer: Retention) -> list[float]:
        return layer.log_decay(torch.device("cpu"), torch.float64).exp().tolist()

    assert decays(Retention(16, 8)) == pytest.approx([1 - 2 ** (-5 - h) for h in range(8)], rel=1e-15)
    layer = Retention(16, 4, shortest_memory=2)
    assert decays(layer) == pytest.approx([1 / 2, 3 / 4, 7 / 8, 15 / 16], rel=1e-15)
    assert decays(layer.keep_heads([1, 3]).keep_heads([1])) == pytest.approx([15 / 16], rel=1e-15)


@pytest.mark.parametrize("positions", ["rotary(layout=interleaved)", "rotary(base=50)", "none"])
def test_a_loop_with_complex_numbers(positions: str) -> None:
    layer, x = made(positions=positions, output_norm=False, output_gate="none"), random(B, N, D)
    base = {"none": None, "rotary(base=50)": 50}.get(positions, 10_000)
    half = positions == "rotary(base=50)"
    heads = torch.zeros(B, N, H * w, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            q, k = (layer.qkv(x)[b, :, part * D + h * d : part * D + h * d + d] for part in range(2))
            v = layer.qkv(x)[b, :, 2 * D + h * w : 2 * D + h * w + w]
            for n in range(N):
                for m in range(n + 1):
                    score = 0.0
                    for i in range(d // 2):
                        pair = (i, i + d // 2) if half else (2 * i, 2 * i + 1)
                        angle = 0.0 if base is None else (n - m) * base ** (-2 * i / d)
                        a, c = (complex(*(t[step, j].item() for j in pair)) for t, step in ((q, n), (k, m)))
                        score += (a * cmath.exp(1j * angle) * c.conjugate()).real
                    heads[b, n, h * w : h * w + w] += (1 - 2 ** (-5 - h)) ** (n - m) * score / d**0.5 * v[m]
    assert_same(layer(x), layer.output(heads))


REAL = torch.ones(B, N, dtype=torch.bool)
REAL[0, [0, 1, 2, 6]] = REAL[1, [4, 9, 10]] = False  # padding before, between and after the tokens
IDS = torch.tensor([5, 5, 5, 5, 5, 2, 2, 9, 9, 9, 4])


def mask_of(length: int, documents: bool) -> masks.Mask:
    real = masks.from_key_padding_mask(~REAL[:, :length])
    return masks.documents(IDS[:length]) & real if documents else real


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("short_conv", [0, 3])
@torch.no_grad()
def test_positions_continue_after_the_real_tokens(documents: bool, short_conv: int) -> None:
    layer, x = made(short_conv=short_conv), random(B, N, D)
    cache, steps = layer.make_cache(1), []
    for part in x.split([5, 1, 3, 2], 1):
        steps.append(layer(part, mask=mask_of(cache.num_seen + part.shape[1], documents), cache=cache))
        cache.reorder(torch.tensor([0, 1]))
    assert_same(torch.cat(steps, 1), layer(x, mask=mask_of(N, documents)))
    assert_same(layer(x[:1, REAL[0]])[0], layer(x, mask=mask_of(N, False))[0, REAL[0]])
    assert cache.state[-1].tolist() == REAL.sum(-1).tolist()


@torch.no_grad()
def test_without_positions_no_count_is_kept() -> None:
    layer, cache = made(positions="none"), made().make_cache(1)
    layer(random(B, N, D), cache=cache)
    assert [t.shape for t in cache.state] == [(B, H, d, w)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Retention is always causal"):
        Retention(D, H, causal=False)
    with pytest.raises(ValueError, match="shortest_memory must be at least 2, not 1"):
        Retention(D, H, shortest_memory=1)
    for positions in ("alibi", "t5"):
        with pytest.raises(ValueError, match=f"positions={positions} is a bias of softmax scores, .*; use rotary or"):
            Retention(D, H, positions=positions)
    with pytest.raises(ValueError, match="rotary positions need an even head_dim, not 5"):
        Retention(15, 3)


def test_heads_are_normalized_each() -> None:
    """The norm makes a head independent of its scale, and of that of the other heads."""
    layer, x = made(), random(B, N, D)
    with torch.no_grad():
        layer.norm.eps = 0.0  # type: ignore[union-attr]
        expected = layer(x)
        layer.qkv.weight[2 * D : 2 * D + w] *= 8  # the values of head 0
    assert_same(layer(x), expected)
