"""Dropout of attention weights: unbiased, seeded, differentiable. Sizes are primes."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import randn, reference
from torch import Tensor

from attnlab.masks import Mask, causal, from_tensor, padding, sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.ops.backends.dropout import GRID, dropout_attention
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.softmax import softmax_attention, softmax_weights

B, H, N, d = 2, 3, 197, 5
WINDOW = causal() & sliding_window(7)
EYE = torch.eye(N, dtype=torch.float64).expand(B, H, N, N)
"""With the identity as values, the output is the matrix of weights."""

DROPPED = {
    "none": None,
    "causal": causal(),
    "padding": padding(torch.tensor([37, 101])),
    "empty": padding(torch.tensor([0, 101])),
    "heads": from_tensor(torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(5)) > 0.6),
}


def tensors(length: int = N, width: int = d) -> list[Tensor]:
    return randn((B, H, length, d), (B, H, length, d), (B, H, length, width))


@pytest.mark.parametrize("mask", DROPPED.values(), ids=DROPPED)
@pytest.mark.parametrize("biased", [False, True])
def test_dropout_drops_weights_and_scales_the_others(mask: Mask | None, biased: bool) -> None:
    q, k, _ = tensors()
    bias = torch.randn(1, H, 1, N, dtype=torch.float64) if biased else None
    bound = None if mask is None else mask.bind(N, shape=(B, H))
    matrix = None if bound is None else bound.tensor()
    if bias is not None:
        matrix = bias if matrix is None else bias.masked_fill(~matrix, -torch.inf)
    torch.manual_seed(0)
    dropped = dropout_attention(q, k, EYE, matrix, 0.3, d**-0.5) * (GRID - round(0.3 * GRID)) / GRID
    weights = softmax_weights(q, k, bound, bias)
    kept = dropped != 0
    torch.testing.assert_close(dropped, weights * kept)
    possible = weights > 0
    for part in range(8):  # all positions within a random word are alike
        possible_part = possible.flatten()[part::8]
        fraction = kept.flatten()[part::8][possible_part].double().mean().item()
        assert abs(fraction - 0.7) < 5 * math.sqrt(0.21 / int(possible_part.sum()))


def test_dropout_of_almost_all_weights_is_finite() -> None:
    assert dropout_attention(*tensors(), None, 1 - 1e-9, 1.0).isfinite().all()


def test_dropout_gradient() -> None:
    matrix = causal().bind(19, shape=(B, H)).tensor()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(7)
        return dropout_attention(q, k, v, matrix, 0.4, 0.3)

    assert torch.autograd.gradcheck(run, tensors(19), fast_mode=True)


def test_dropout_is_seeded_and_supports_a_learned_bias() -> None:
    q, k, v = tensors()

    def run(seed: int, bias: Tensor | None = None) -> tuple[Tensor, str]:
        torch.manual_seed(seed)
        with record_dispatch() as records:
            out = softmax_attention(q, k, v, None, bias, dropout=0.2)
        return out, records[0].name

    assert torch.equal(run(3)[0], run(3)[0])
    assert not torch.equal(run(3)[0], run(4)[0])
    assert run(3)[1] == "fused"
    learned = torch.zeros(N, N, dtype=torch.float64, requires_grad=True)
    out, backend = run(3, learned)
    assert backend == "matrix"
    assert torch.autograd.grad(out.sum(), learned)[0].any()


@pytest.mark.parametrize(
    ("length", "width", "mask", "with_sink"),
    [(31, d, None, False), (31, d, None, True), (31, 2 * d, None, False), (131, d, WINDOW, False)],
    ids=["plain", "sink", "wide values", "window"],
)
def test_dropout_keeps_the_mean(length: int, width: int, mask: Mask | None, with_sink: bool) -> None:
    q, k, v = tensors(length, width)
    sink = randn((H,))[0] if with_sink else None
    bound = None if mask is None else mask.bind(length, shape=(B, H))
    torch.manual_seed(0)
    outs = torch.stack([softmax_attention(q, k, v, bound, sink=sink, dropout=0.2) for _ in range(300)])
    torch.testing.assert_close(outs.mean(0), reference(q, k, v, mask, sink=sink), rtol=0, atol=0.17)
    assert not torch.equal(outs[0], outs[1])
    assert sink is None or torch.autograd.grad(outs.sum(), sink)[0].abs().min() > 0


def test_recomputed_dropout_repeats_its_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.backends.tiles.MAX_DROPOUT_WEIGHTS", 1)  # the backward pass recomputes
    monkeypatch.setattr("attnlab.ops.backends.tiles.MATRIX_TILE_VALUES", B * H * N * 50)  # 50 rows at a time
    q, k, _ = tensors()
    eye = EYE.clone().requires_grad_()
    torch.manual_seed(0)
    out = softmax_attention(q, k, eye, dropout=0.3)
    (gradient,) = torch.autograd.grad(out.sum(), eye)
    # The gradient of a value is its weight summed over the rows: the backward pass drops the same weights.
    torch.testing.assert_close(gradient[..., 0], out.sum(2))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap() -> None:
    dropping = MultiAttention(12, 3, dropout=0.5).double()
    same = torch.randn(1, 2, N, 12, dtype=torch.float64).expand(7, -1, -1, -1)
    a, b, *_ = torch.func.vmap(dropping, randomness="different")(same)
    assert not torch.equal(a, b)
    layer = MultiAttention(12, 3).double()
    x = torch.randn(B, 5, N, 12, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: layer(x, mask=WINDOW))(x)
    torch.testing.assert_close(mapped, layer(x.flatten(0, 1), mask=WINDOW).unflatten(0, (B, 5)))
