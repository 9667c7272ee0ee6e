"""Every backend of softmax attention matches the formula, outputs and gradients, and is recorded. Sizes are primes."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnlab
from attnlab.masks import (
    Mask,
    block_local,
    causal,
    documents,
    from_cu_seqlens,
    from_key_padding_mask,
    from_tensor,
    padding,
    prefix,
    sliding_window,
)
from attnlab.models.multihead import MultiAttention
from attnlab.ops.backends.dropout import GRID, dropout_attention
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.softmax import softmax_attention, softmax_weights

B, H, N, M, d = 2, 3, 197, 211, 5

LENGTHS = torch.tensor([37, 101])
EMPTY = torch.tensor([0, 101])
IDS = torch.arange(N) // 23
SQUARE: dict[str, tuple[str, Mask | None]] = {
    "everything": ("fused", None),
    "causal": ("triangle", causal()),
    "window": ("window", sliding_window(11)),
    "window back": ("window", causal() & sliding_window(7)),
    "window or blocks": ("window", sliding_window(3) | block_local(7)),
    "window, right padding": ("window", causal() & sliding_window(7) & padding(LENGTHS)),
    "window, left padding": ("window", sliding_window(7) & causal() & padding(LENGTHS, side="left", max_length=N)),
    "window, key padding": ("window", sliding_window(7) & from_key_padding_mask(torch.arange(N) >= LENGTHS[:, None])),
    "window, a matrix": ("window", sliding_window(5) & from_tensor((torch.arange(N) % 3 > 0).expand(N, N))),
    "window, item documents": ("window", sliding_window(7) & documents(torch.stack([IDS, IDS // 2]))),
    "right padding": ("items", padding(LENGTHS)),
    "left padding": ("items", padding(LENGTHS, side="left", max_length=N)),
    "causal, right padding": ("items", causal() & padding(LENGTHS)),
    "causal, left padding": ("items", padding(LENGTHS, side="left", max_length=N) & causal()),
    "empty item": ("items", padding(EMPTY)),
    "a key mask, right": ("items", from_key_padding_mask(torch.arange(N) >= LENGTHS[:, None])),
    "a key mask, left, causal": ("items", causal() & from_key_padding_mask(torch.arange(N) < LENGTHS[:, None])),
    "a key mask, empty item": ("items", from_key_padding_mask(torch.arange(N) >= EMPTY[:, None])),
    "a key mask with a hole": ("matrix", from_key_padding_mask((torch.arange(N) + LENGTHS[:, None]) % N > 60)),
    "padding, prefix of an item": ("items", (causal() | prefix(torch.tensor([3, 41]))) & padding(LENGTHS)),
    "one padding for all": ("matrix", padding(torch.tensor([37]))),
    "hardly padded": ("matrix", padding(torch.tensor([N, N - 2]))),
    "packed": ("segments", from_cu_seqlens(torch.tensor([0, 17, 60, 60, N]))),
    "packed, causal": ("segments", causal() & from_cu_seqlens(torch.tensor([0, 17, 60, 130, N]))),
    "packed, prefix": ("segments", documents(IDS) & (causal() | prefix(29))),
    "documents interrupted": ("matrix", documents(IDS % 2)),
    "one document": ("matrix", documents(torch.zeros(N, dtype=torch.long))),
    "a wide window": ("matrix", sliding_window(70)),
    "a matrix": ("matrix", from_tensor(torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(5)) > 0.6)),
}


def tensors(keys: int = N, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return randn((B, H, N, d), (B, H, keys, d), (B, H, keys, d), dtype=dtype)


def check(mask: Mask | None, backend: str | None, keys: int = N, bias: Tensor | None = None) -> None:
    q, k, v = tensors(keys)
    bound = None if mask is None else mask.bind(N, keys, shape=(B, H))
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, bound, bias)
    if backend is not None:
        assert [record.name for record in records] == [backend]
    unread = None if mask is None else mask.bind(N, keys, shape=(B, H))
    expected = softmax_weights(q, k, unread, bias) @ v
    torch.testing.assert_close(out, expected)
    inputs = [t for t in (q, k, v, bias) if t is not None and t.requires_grad]
    direction = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad((o * direction).sum(), inputs) for o in (out, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("backend", "mask"), SQUARE.values(), ids=SQUARE)
def test_every_backend_matches_the_formula(backend: str, mask: Mask | None) -> None:
    check(mask, backend)


@pytest.mark.parametrize("shape", [(N, N), (H, 1, N), (1, H, N, 1), (B, H, N, N)])
@pytest.mark.parametrize("name", ["causal", "window back", "window, left padding", "right padding", "packed, causal"])
def test_every_backend_adds_a_bias(name: str, shape: tuple[int, ...]) -> None:
    bias = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    backend, mask = SQUARE[name]
    check(mask, "matrix" if backend == "triangle" else backend, bias=bias)


@pytest.mark.parametrize(
    ("backend", "mask"),
    [
        ("items", padding(LENGTHS)),
        ("items", causal() & padding(LENGTHS)),
        ("window", causal() & sliding_window(7)),
        ("window", sliding_window(7) & padding(LENGTHS, side="left", max_length=M)),
        ("matrix", documents(torch.arange(M) // 40)),
        ("matrix", causal()),
    ],
)
def test_with_more_keys_than_queries(backend: str, mask: Mask) -> None:
    check(mask, backend, keys=M)


def test_lengths_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        check(padding(torch.tensor([37, 41, 101])), None)


RULES = st.sampled_from(
    [
        causal(),
        sliding_window(3),
        sliding_window(29),
        prefix(31),
        prefix(torch.tensor([2, 59])),
        padding(LENGTHS),
        padding(EMPTY),
        padding(LENGTHS, side="left", max_length=N),
        documents(IDS),
        documents(torch.stack([IDS, IDS // 3])),
        block_local(17),
        from_tensor(torch.rand(N, N, generator=torch.Generator().manual_seed(3)) > 0.3),
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        RULES,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            inner.map(lambda a: ~a),
        ),
        max_leaves=4,
    )
)
def test_any_composition_of_masks(mask: Mask) -> None:
    check(mask, None)


@pytest.mark.parametrize("name", ["causal", "window back", "right padding", "packed, causal", "a matrix"])
def test_float32_stays_near_float64(name: str) -> None:
    _, mask = SQUARE[name]
    assert mask is not None
    out = softmax_attention(*tensors(dtype=torch.float32), mask.bind(N, shape=(B, H)))
    assert out.dtype == torch.float32
    exact = softmax_attention(*tensors(), mask.bind(N, shape=(B, H)))
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["window", "window, right padding", "packed, causal", "left padding"])
def test_the_mask_matrix_is_never_materialized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mask = SQUARE[name]
    assert mask is not None
    bound = mask.bind(N, shape=(B, H))
    if name == "left padding":
        bound = (sliding_window(3) & mask).bind(N, shape=(B, H))
    monkeypatch.setattr(type(bound), "tensor", lambda self: pytest.fail("the matrix was materialized"))
    softmax_attention(*tensors(), bound)
    if "window" in name:
        bound.zero_fully_masked_rows(torch.zeros(B, N, d))


def test_fully_masked_rows_are_found_by_tiles() -> None:
    mask = sliding_window(5) & padding(LENGTHS, side="left", max_length=N)
    out = mask.bind(N, shape=(B, H)).zero_fully_masked_rows(torch.ones(B, N, 1))
    expected = mask.materialize(N).any(-1).squeeze(1).double().unsqueeze(-1)
    assert expected.min() == 0
    torch.testing.assert_close(out.double(), expected)


@pytest.mark.parametrize("training", [True, False])
def test_explain_path(training: bool) -> None:
    layer = MultiAttention(12, 3, causal=True, dropout=0.1).train(training)
    (record,) = attnlab.explain_path(layer, torch.randn(1, 211, 12))
    assert record.name == "triangle"
    assert "causal, 211 long" in str(record)
    assert str(record).endswith("; dropout 0.1 of the weights") == training
    (record,) = attnlab.explain_path(layer.eval(), torch.randn(2, 211, 12), mask=sliding_window(8))
    assert str(record) == "window: causal() & sliding_window(8) reaches 7 back and 0 ahead of 211 keys"
    (record,) = attnlab.explain_path(layer, torch.randn(1, 3, 12))
    assert record.name == "causal"
    assert attnlab.explain_path(torch.nn.Linear(3, 3), torch.randn(2, 3)) == []


DROPPED = {
    "none": None,
    "causal": causal(),
    "padding": padding(LENGTHS),
    "empty": padding(EMPTY),
    "heads": from_tensor(torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(5)) > 0.6),
}


@pytest.mark.parametrize("mask", DROPPED.values(), ids=DROPPED)
@pytest.mark.parametrize("biased", [False, True])
def test_dropout_drops_weights_and_scales_the_others(mask: Mask | None, biased: bool) -> None:
    q, k, _ = tensors()
    bias = torch.randn(1, H, 1, N, dtype=torch.float64) if biased else None
    bound = None if mask is None else mask.bind(N, shape=(B, H))
    permitted = None if bound is None else bound.tensor()
    torch.manual_seed(0)
    # With the identity as values, the output is the matrix of weights.
    eye = torch.eye(N, dtype=torch.float64).expand(B, H, N, N)
    matrix = permitted
    if bias is not None:
        matrix = bias if permitted is None else bias.masked_fill(~permitted, -torch.inf)
    dropped = dropout_attention(q, k, eye, matrix, 0.3, d**-0.5) * (GRID - round(0.3 * GRID)) / GRID
    weights = softmax_weights(q, k, bound, bias)
    kept = dropped != 0
    torch.testing.assert_close(dropped, weights * kept)
    possible = weights > 0
    for part in range(8):  # all positions within a random word are alike
        possible_part = possible.flatten()[part::8]
        fraction = kept.flatten()[part::8][possible_part].double().mean().item()
        assert abs(fraction - 0.7) < 5 * math.sqrt(0.21 / int(possible_part.sum()))


def test_dropout_of_almost_all_weights_is_finite() -> None:
    q, k, v = tensors()
    assert dropout_attention(q, k, v, None, 1 - 1e-9, 1.0).isfinite().all()


def test_dropout_gradient() -> None:
    q, k, v = (t[:, :, :19].detach().requires_grad_() for t in tensors())
    bound = causal().bind(19, shape=(B, H))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(7)
        return dropout_attention(q, k, v, bound.tensor(), 0.4, 0.3)

    assert torch.autograd.gradcheck(run, (q, k, v))


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


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap() -> None:
    dropping = MultiAttention(12, 3, dropout=0.5).double()
    same = torch.randn(1, 2, N, 12, dtype=torch.float64).expand(7, -1, -1, -1)
    a, b, *_ = torch.func.vmap(dropping, randomness="different")(same)
    assert not torch.equal(a, b)
    layer = MultiAttention(12, 3).double()
    x = torch.randn(B, 5, N, 12, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: layer(x, mask=causal() & sliding_window(7)))(x)
    torch.testing.assert_close(mapped, layer(x.flatten(0, 1), mask=causal() & sliding_window(7)).unflatten(0, (B, 5)))


def test_dropout_in_a_window_keeps_the_mean() -> None:
    q, k, v = tensors()
    bound = (causal() & sliding_window(7)).bind(N, shape=(B, H))
    torch.manual_seed(0)
    with record_dispatch() as records:
        outs = torch.stack([softmax_attention(q, k, v, bound, dropout=0.3).detach() for _ in range(400)])
    assert records[0].name == "window"
    torch.testing.assert_close(outs.mean(0), softmax_attention(q, k, v, bound).detach(), rtol=0, atol=0.2)
    assert not torch.equal(outs[0], outs[1])


def test_recomputed_dropout_repeats_its_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.backends.tiles.MAX_DROPOUT_WEIGHTS", 1)  # the backward pass recomputes
    monkeypatch.setattr("attnlab.ops.backends.tiles.MATRIX_TILE_VALUES", B * H * N * 50)  # 50 rows at a time
    q, k, _ = tensors()
    eye = torch.eye(N, dtype=torch.float64).expand(B, H, N, N).clone().requires_grad_()
    torch.manual_seed(0)
    out = softmax_attention(q, k, eye, dropout=0.3)
    (gradient,) = torch.autograd.grad(out.sum(), eye)
    # The gradient of a value is its weight summed over the rows: the backward pass drops the same weights.
    torch.testing.assert_close(gradient[..., 0], out.sum(2))
