"""DeepSeek sparse attention: the worked example, the formula as a loop, its limits, and the loss of the indexer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import CAUSAL, assert_same, assert_same_gradients, perturbed, random
from torch import Tensor

from attnlab import masks
from attnlab.models.dsa import DeepSeekSparseAttention
from attnlab.models.multihead import MultiAttention
from attnlab.ops import selection

B, N, H, D, d = 2, 11, 3, 15, 5


def made(**options: Any) -> DeepSeekSparseAttention:
    torch.manual_seed(0)
    return perturbed(DeepSeekSparseAttention(D, H, **{"index_heads": 2, "index_dim": 7, **options}))


def scores_of(layer: DeepSeekSparseAttention, x: Tensor) -> list[list[list[float]]]:
    """The index scores of each item, query and key, as numbers."""
    part = layer.indexer
    result = torch.zeros(len(x), x.shape[1], x.shape[1], dtype=torch.float64)
    k = part.key_norm(part.key(x))
    for b in range(len(x)):
        for t in range(x.shape[1]):
            for s in range(x.shape[1]):
                for j in range(part.num_heads):
                    q = part.query(x[b, t])[j * part.head_dim : (j + 1) * part.head_dim]
                    result[b, t, s] += part.weight(x[b, t])[j] * (q @ k[b, s]).clamp(min=0)
    return (result / math.sqrt(part.num_heads * part.head_dim)).tolist()


MASKS = {
    "none": None,
    "padding": masks.padding(torch.tensor([N, 4])),
    "documents": masks.documents(torch.tensor([0] * 6 + [1] * (N - 6))),
    "a window": masks.sliding_window(3),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("top_k", [1, 4])
@CAUSAL
@torch.no_grad()
def test_a_loop_over_queries(name: str, top_k: int, causal: bool) -> None:
    layer, x, mask = made(causal=causal, top_k=top_k), random(B, N, D), MASKS[name]
    allowed = torch.ones(B, 1, N, N, dtype=torch.bool) if mask is None else mask.materialize(N).expand(B, 1, N, N)
    allowed = allowed.tril() if causal else allowed
    index, expected = scores_of(layer, x), torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        Q, K, V = layer.qkv(x[b]).unflatten(-1, (3, H, d)).unbind(1)  # (N, H, d)
        for t in range(N):
            keys = sorted((s for s in range(N) if allowed[b, 0, t, s]), key=lambda s: (-index[b][t][s], s))[:top_k]
            for h in range(H):
                weights = torch.stack([Q[t, h] @ K[s, h] for s in keys]).div(d**0.5).softmax(0)
                expected[b, t, h * d : h * d + d] = weights @ V[keys, h]
    assert_same(layer(x, mask=mask), layer.output(expected))


@CAUSAL
@pytest.mark.parametrize("top_k", [N, N + 5])
def test_with_all_keys_it_is_multi_head_attention(causal: bool, top_k: int) -> None:
    layer, multihead = made(causal=causal, top_k=top_k), MultiAttention(D, H, causal=causal).double()
    multihead.load_state_dict(layer.state_dict(), strict=False)
    x, shared = random(B, N, D).requires_grad_(), [name for name, _ in multihead.named_parameters()]
    ours, theirs = ([x, *(module.get_parameter(name) for name in shared)] for module in (layer, multihead))
    assert_same_gradients((layer(x), ours), (multihead(x), theirs), 1e-12)
    fewer = made(causal=causal, top_k=N - 1)
    assert (fewer(x) - multihead(x)).abs().max() > 1e-3


@pytest.mark.parametrize("gather", [False, True])
def test_heads_attend_to_the_same_keys(gather: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if gather:
        monkeypatch.setattr(selection, "GATHER_RATIO", 1)
    layer, x = made(causal=True, top_k=3), random(B, 40, D)
    weights = layer.attention_weights(x)
    used = weights > 0
    assert torch.equal(used, used[:, :1].expand_as(used))
    assert torch.equal(used.sum(-1)[0, 0], (torch.arange(40) + 1).clamp(max=3))
    assert_same(layer.apply_weights(weights, x), layer(x))


def test_each_head_selects_among_the_keys_that_its_mask_allows() -> None:
    layer, x = made(top_k=2), random(B, N, D)
    allowed = random(B, H, N, N) > 0
    weights = layer.attention_weights(x, mask=allowed)
    assert not (weights * ~allowed).any()
    assert torch.equal((weights > 0).sum(-1), allowed.sum(-1).clamp(max=2))
    assert_same(layer.apply_weights(weights, x, mask=allowed), layer(x, mask=allowed))


@torch.no_grad()
def test_decoding_reads_the_selected_keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = perturbed(DeepSeekSparseAttention(18, H, top_k=3, index_dim=6, causal=True, positions="rotary"))
    x = random(B, 29, 18)
    sizes, gathered = [], selection.gathered
    monkeypatch.setattr(selection, "gathered", lambda *args: sizes.append(args[1].shape[2]) or gathered(*args))
    cache = layer.make_cache(29)
    steps = [layer(part, cache=cache) for part in x.split([5, 12, *[1] * 12], 1)]
    assert sizes == list(range(18, 30))
    assert_same(torch.cat(steps, 1), layer(x))
    assert cache.bytes_per_token == B * (2 * 18 + 6) * 8


def test_the_output_gives_the_indexer_no_gradient() -> None:
    layer, x = made(top_k=3), random(B, N, D)
    layer(x).square().sum().backward()
    without = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in layer.named_parameters() if name.startswith("indexer.")}


@pytest.mark.parametrize("name", MASKS)
@CAUSAL
def test_the_loss_of_the_indexer(name: str, causal: bool) -> None:
    layer, x, mask = made(causal=causal, top_k=4), random(B, N, D).requires_grad_(), MASKS[name]
    loss = layer.auxiliary_loss(x, mask=mask)
    p, index, terms = layer.attention_weights(x, mask=mask).mean(1), scores_of(layer, x), []
    for b in range(B):
        for t in range(N):
            keys = [s for s in range(N) if p[b, t, s] > 0]
            if keys:
                total = math.log(sum(math.exp(index[b][t][s]) for s in keys))
                terms.append(sum(p[b, t, s].item() * (p[b, t, s].log().item() - index[b][t][s] + total) for s in keys))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    loss.backward()
    assert x.grad is None
    trained = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in layer.named_parameters() if name.startswith("indexer.")}


def test_the_loss_is_zero_where_index_and_attention_agree() -> None:
    layer = made(top_k=N)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.indexer.weight.weight.zero_()
        layer.qkv.bias.zero_()
    assert layer.auxiliary_loss(random(B, N, D)).item() == pytest.approx(0, abs=1e-12)


def test_the_loss_trains_the_indexer_to_select_what_attention_prefers() -> None:
    layer, x = made(top_k=3, index_heads=4), random(4, 17, D)
    full = MultiAttention(D, H).double()
    full.load_state_dict(layer.state_dict(), strict=False)
    expected, best = full(x), full.attention_weights(x).mean(1).topk(3).indices

    def recall() -> float:
        return float((layer.attention_weights(x).mean(1) > 0).gather(-1, best).double().mean())

    optimizer, before = torch.optim.Adam(layer.indexer.parameters(), lr=1e-2), recall()
    error = (layer(x) - expected).square().mean()
    for _ in range(200):
        optimizer.zero_grad()
        layer.auxiliary_loss(x).backward()
        optimizer.step()
    assert recall() > 1.5 * before
    assert (layer(x) - expected).square().mean() < error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be .*, not 0"),
        ({"index_heads": 0}, "index_heads must be"),
        ({"index_dim": -1}, "index_dim must be"),
        ({"positions": "alibi"}, "positions of DeepSeek sparse attention are none or rotary, not alibi"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepSeekSparseAttention(12, 3, **options)
    with pytest.raises(ValueError, match="rotary positions need an even index_dim, got 7"):
        DeepSeekSparseAttention(12, 3, positions="rotary", index_dim=7)
