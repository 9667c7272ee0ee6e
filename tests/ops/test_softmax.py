"""Softmax attention in every backend against the formula: outputs, gradients and options. Sizes are primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_match, randn, reference, reference_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnlab
from attnlab.masks import (
    Mask,
    block_local,
    block_sparse,
    block_summary,
    causal,
    dilated,
    documents,
    from_cu_seqlens,
    from_key_padding_mask,
    from_tensor,
    global_tokens,
    padding,
    per_head,
    prefix,
    sliding_window,
    strided,
)
from attnlab.models.multihead import MultiAttention
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.softmax import MAX_SHARED_QUERIES, SoftmaxMap, masked_softmax, softmax_attention, softmax_weights

B, H, G, N, M, d, w = 2, 6, 3, 197, 211, 5, 3


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


LENGTHS, EMPTY = torch.tensor([37, 101]), torch.tensor([0, 101])
IDS, POSITION = torch.arange(N) // 23, torch.arange(N)
ON_THE_LEFT = padding(LENGTHS, side="left", max_length=N)
NEAR, FAR = [block_local(11)] * 2, [block_summary(11)] * 2
MASKS: dict[str, tuple[str, Mask | None]] = {
    "everything": ("fused", None),
    "causal": ("triangle", causal()),
    "window": ("window", sliding_window(11)),
    "window back": ("window", causal() & sliding_window(7)),
    "window or blocks": ("window", sliding_window(3) | block_local(7)),
    "window, right padding": ("window", causal() & sliding_window(7) & padding(LENGTHS)),
    "window, left padding": ("window", sliding_window(7) & causal() & ON_THE_LEFT),
    "window, key padding": ("window", sliding_window(7) & from_key_padding_mask(LENGTHS[:, None] <= POSITION)),
    "window, a matrix": ("window", sliding_window(5) & from_tensor((POSITION % 3 > 0).expand(N, N))),
    "window, item documents": ("window", sliding_window(7) & documents(torch.stack([IDS, IDS // 2]))),
    "dilated": ("window", dilated(5, 3)),
    "strided": ("tiles", causal() & strided(7)),
    "strided, padded": ("tiles", causal() & strided(7) & padding(LENGTHS)),
    "strided, padded on the left": ("tiles", strided(7) & ON_THE_LEFT),
    "strided, packed": ("tiles", causal() & strided(5) & documents(IDS)),
    "global tokens": ("matrix", sliding_window(5) | global_tokens(3)),
    "scattered blocks": ("tiles", causal() & (sliding_window(3) | block_sparse(8, uniform(27, 27) > 0.9))),
    "summaries": ("tiles", block_summary(11, 2) & causal()),
    "right padding": ("items", padding(LENGTHS)),
    "left padding": ("items", ON_THE_LEFT),
    "causal, right padding": ("items", causal() & padding(LENGTHS)),
    "causal, left padding": ("items", ON_THE_LEFT & causal()),
    "padded queries": ("items", causal() & padding(LENGTHS, mask_queries=True)),
    "empty item": ("items", padding(EMPTY)),
    "a key mask, right": ("items", from_key_padding_mask(LENGTHS[:, None] <= POSITION)),
    "a key mask, left, causal": ("items", causal() & from_key_padding_mask(LENGTHS[:, None] > POSITION)),
    "a key mask, empty item": ("items", from_key_padding_mask(EMPTY[:, None] <= POSITION)),
    "a key mask with a hole": ("matrix", from_key_padding_mask((POSITION + LENGTHS[:, None]) % N > 60)),
    "padding, prefix of an item": ("items", (causal() | prefix(torch.tensor([3, 41]))) & padding(LENGTHS)),
    "one padding for all": ("matrix", padding(torch.tensor([37]))),
    "hardly padded": ("matrix", padding(torch.tensor([N, N - 2]))),
    "packed": ("segments", from_cu_seqlens(torch.tensor([0, 17, 60, 60, N]))),
    "packed, causal": ("segments", causal() & from_cu_seqlens(torch.tensor([0, 17, 60, 130, N]))),
    "packed, prefix": ("segments", documents(IDS) & (causal() | prefix(29))),
    "documents interrupted": ("matrix", documents(IDS % 2)),
    "one document": ("matrix", documents(torch.zeros(N, dtype=torch.long))),
    "a wide window": ("matrix", sliding_window(70)),
    "a matrix": ("matrix", from_tensor(uniform(B, H, N, N) > 0.6)),
    "per head": ("window tiles window tiles", causal() & per_head([*NEAR, strided(13), sliding_window(4), *FAR])),
}


def check(
    mask: Mask | None,
    backend: str | None = None,
    bias: Tensor | None = None,
    *,
    queries: int = N,
    keys: int = N,
    heads: int = H,
    width: int = d,
    **options: Any,
) -> None:
    """Compare outputs, gradients and weights; ``backend`` names the backends, separated by spaces."""
    q, k, v = randn((B, H, queries, d), (B, heads, keys, d), (B, heads, keys, width))
    for_output, for_weights = (None if mask is None else mask.bind(queries, keys, shape=(B, H)) for _ in range(2))
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, for_output, bias, **options)
    assert backend is None or " ".join(record.name for record in records) == backend
    learned = [t for t in (q, k, v, bias, options.get("sink")) if t is not None and t.requires_grad]
    assert_match(out, reference(q, k, v, mask, bias, **options), learned)
    with torch.no_grad():
        weights = SoftmaxMap(q, k, for_weights, bias, **options).materialize()
        torch.testing.assert_close(weights, reference_weights(q, k, mask, bias, **options))


@pytest.mark.parametrize(("backend", "mask"), MASKS.values(), ids=MASKS)
def test_every_backend_matches_the_formula(backend: str, mask: Mask | None) -> None:
    check(mask, backend)


@pytest.mark.parametrize("shape", [(N, N), (H, 1, N), (1, H, N, 1), (B, H, N, N)])
@pytest.mark.parametrize("name", ["causal", "window back", "window, left padding", "right padding", "packed, causal"])
def test_every_backend_adds_a_bias(name: str, shape: tuple[int, ...]) -> None:
    backend, mask = MASKS[name]
    check(mask, "matrix" if backend == "triangle" else backend, randn(shape)[0])


OPTIONS: list[dict[str, Any]] = [
    {"heads": H // G},
    {"sink": True},
    {"softcap": 1.7},
    {"sink": True, "softcap": 1.7, "heads": H // G},
    {"width": w},
    {"width": 2 * d + 1, "sink": True, "heads": H // G},
]
WITH_OPTIONS = [
    *("everything", "causal", "window back", "right padding", "padded queries", "empty item", "strided"),
    *("strided, padded", "strided, padded on the left", "strided, packed", "dilated", "global tokens"),
    *("scattered blocks", "summaries", "packed, causal", "a matrix", "per head"),
]


@pytest.mark.parametrize("name", WITH_OPTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_in_every_backend(name: str, options: dict[str, Any]) -> None:
    """Shared keys, a sink, a cap on the scores, and values of any width."""
    check(MASKS[name][1], **(options | {"sink": randn((H,))[0]} if "sink" in options else options))


def test_a_learned_bias_and_a_sink_learn_together() -> None:
    check(None, None, randn((H, N, N))[0], sink=randn((H,))[0])


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


@pytest.mark.parametrize("queries", [1, 3, MAX_SHARED_QUERIES, MAX_SHARED_QUERIES + 1])
@pytest.mark.parametrize("mask", [None, causal(), causal() & sliding_window(7), padding(LENGTHS), "a matrix"], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_few_queries_use_shared_keys_without_copies(queries: int, mask: Any, biased: bool) -> None:
    mask = from_tensor(uniform(B, H, queries, M) > 0.5) if mask == "a matrix" else mask
    few = queries <= MAX_SHARED_QUERIES
    bias = torch.randn(H, queries, M, dtype=torch.float64) if biased else None
    check(mask, "shared" if few else None, bias, queries=queries, keys=M, heads=H // G)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        check(padding(torch.tensor([37, 41, 101])))
    with pytest.raises(ValueError, match=r"key heads \(4\) must divide the number of query heads \(6\)"):
        check(None, heads=4)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.recursive(
        st.sampled_from([mask for _, mask in MASKS.values() if mask is not None]),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            inner.map(lambda a: ~a),
        ),
        max_leaves=4,
    )
)
def test_any_composition_of_masks(mask: Mask) -> None:
    check(mask)


# Precision and extreme values


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", ["causal", "window back", "right padding", "packed, causal", "a matrix"])
@pytest.mark.parametrize("with_sink", [False, True])
def test_low_precision_stays_near_float64(name: str, dtype: torch.dtype, atol: float, with_sink: bool) -> None:
    _, mask = MASKS[name]
    assert mask is not None
    exact = randn(*[(B, H, N, d)] * 3, (H,), grad=False)
    q, k, v, sink = (t.to(dtype) for t in exact)
    out = softmax_attention(q, k, v, mask.bind(N, shape=(B, H)), sink=sink if with_sink else None)
    assert out.dtype == dtype
    expected = reference(*exact[:3], mask, sink=exact[3] if with_sink else None)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


def test_one_head_without_its_axis() -> None:
    q, k, v = randn((B, 5, d), (B, 7, d), (B, 7, w), grad=False)
    bound = (causal() & padding(torch.tensor([3, 7]))).bind(5, 7, shape=(B, 1))
    four = softmax_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), bound)
    torch.testing.assert_close(softmax_attention(q, k, v, bound), four.squeeze(1), rtol=0, atol=0)
    assert softmax_weights(q, k, bound).shape == (B, 1, 5, 7)


@pytest.mark.parametrize("how", ["mask", "mask and bias", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fully_masked_row_is_zero_with_a_finite_gradient(how: str, dropout: float) -> None:
    allowed = torch.ones(5, 7, dtype=torch.bool)
    allowed[1, 2:], allowed[3] = False, False
    bound = from_tensor(allowed).bind(5, 7, shape=(B, H)) if "mask" in how else None
    bias = torch.zeros(5, 7, dtype=torch.float64) if "bias" in how else None
    if how == "bias":
        bias = bias.masked_fill(~allowed, -torch.inf)
    q, k, v = randn((B, H, 5, d), (B, H, 7, d), (B, H, 7, d))
    weights = softmax_weights(q, k, bound, bias)
    for out in (softmax_attention(q, k, v, bound, bias, dropout=dropout), weights):
        assert not out[:, :, 3].any()
        assert out.isfinite().all()
        with torch.autograd.set_detect_anomaly(True):  # raises for a NaN in between too
            gradients = torch.autograd.grad(out.square().sum(), (q, k), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert not gradients[0][:, :, 3].any()
    torch.testing.assert_close(weights @ v, softmax_attention(q, k, v, bound, bias))


def test_large_scores_do_not_overflow() -> None:
    scores = torch.tensor([[[[1e4, 0.0, -1e4]]]])
    torch.testing.assert_close(masked_softmax(scores), torch.tensor([[[[1.0, 0.0, 0.0]]]]))
    half = masked_softmax(scores.half().expand(1, 1, 3, 3), causal().bind(3))
    assert half.dtype == torch.float16
    assert torch.equal(half[0, 0, :, 0], torch.ones(3).half())


# What is chosen, and what is materialized


@pytest.mark.parametrize(
    "name", ["causal", "window", "window, right padding", "packed, causal", "causal, left padding"]
)
def test_the_matrix_of_a_mask_is_never_materialized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mask = MASKS[name]
    assert mask is not None
    bound = mask.bind(N, shape=(B, H))
    monkeypatch.setattr(type(bound), "tensor", lambda self: pytest.fail("the matrix was materialized"))
    softmax_attention(*randn(*[(B, H, N, d)] * 3), bound)
    bound.zero_fully_masked_rows(torch.zeros(B, N, d))


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
