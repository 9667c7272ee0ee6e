"""The selection of keys by rank, and attention to the selected keys, gathered or as a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnlab import explain_path, masks
from attnlab.masks import BoundMask
from attnlab.masks.bound import Index
from attnlab.ops import rowwise, selection
from attnlab.ops.selection import SelectedMap, indices, top_k

B, H, N, d = 2, 6, 11, 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("k", [1, 2, 3, 7, 13])
@pytest.mark.parametrize("values", [2, 3, 1000], ids=["many ties", "ties", "few ties"])
@pytest.mark.parametrize("masked", [False, True])
def test_top_k_of_sorted_scores(k: int, values: int, masked: bool) -> None:
    scores = torch.randint(-values, values, (B, 3, N, 7), generator=torch.Generator().manual_seed(0)).double()
    permitted = random(B, 1, N, 7) > 0.2 if masked else torch.ones(B, 1, N, 7, dtype=torch.bool)
    permitted[0, 0, 2] = False
    chosen = top_k(scores, k, permitted)
    for b in range(B):
        for s in range(3):
            for i in range(N):
                row, allowed = scores[b, s, i].tolist(), permitted[b, 0, i].tolist()
                ranked = sorted((-row[j], j) for j in range(7) if allowed[j])
                assert chosen[b, s, i].nonzero().flatten().tolist() == sorted(j for _, j in ranked[:k])


def test_ties_do_not_depend_on_later_keys() -> None:
    scores = torch.zeros(1, 1, 1, 1000)
    scores[..., 300:310] = 1.0
    scores[..., 500:] = -torch.inf
    for m in (500, 501, 777, 1000):
        assert top_k(scores[..., :m], 20).nonzero()[:, -1].tolist() == [*range(10), *range(300, 310)]


def test_indices_of_the_selected_keys() -> None:
    selected = random(B, 3, N, 7) > 0.5
    limit = int(selected.sum(-1).max())
    index, exists = indices(selected, limit)
    for row, keys, there in zip(selected.flatten(0, 2), index.flatten(0, 2), exists.flatten(0, 2), strict=True):
        assert keys[there].tolist() == row.nonzero().flatten().tolist()


def selecting(scores: Tensor, k: int, q: Tensor, keys: Tensor, mask: BoundMask | None) -> SelectedMap:
    def select(rows: Index, columns: Index, permitted: Tensor | None) -> Tensor:
        return top_k(scores[:, :, rows][..., columns], k, permitted)

    return SelectedMap(q, keys, mask, select, k)


@pytest.mark.parametrize("heads", [1, 2], ids=["shared selection", "selection per key head"])
@pytest.mark.parametrize("masked", ["none", "causal", "padding"])
@pytest.mark.parametrize("tile", [2**20, 2**7], ids=["one tile", "tiles"])
def test_gathered_keys_give_what_a_mask_gives(
    heads: int, masked: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    M, k = 37, 3
    q, keys, v, scores = random(B, H, M, d), random(B, 2, M, d), random(B, 2, M, d), random(B, heads, M, M)
    rule = {"none": None, "causal": masks.causal(), "padding": masks.padding(torch.tensor([M, 2]))}[masked]
    mask = None if rule is None else rule.bind(M, M, shape=(B, H))
    monkeypatch.setattr(rowwise, "MAX_TILE_VALUES", tile)
    results = []
    for ratio in (1, 10**6):
        monkeypatch.setattr(selection, "GATHER_RATIO", ratio)
        inputs = [t.clone().requires_grad_() for t in (q, keys, v)]
        out = selecting(scores, k, inputs[0], inputs[1], mask).apply(inputs[2])
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weights = selecting(scores, k, q, keys, mask).materialize()
    assert int((weights > 0).sum(-1).max()) == k
    torch.testing.assert_close(weights @ v.repeat_interleave(3, 1), results[0][0], rtol=0, atol=1e-12)


def test_the_backend_tells_how_keys_are_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnlab.models.dsa import DeepSeekSparseAttention

    layer, x = DeepSeekSparseAttention(12, 3, top_k=2, causal=True), torch.randn(1, 131, 12)
    with torch.no_grad():
        [dispatch] = explain_path(layer, x)
        assert str(dispatch).startswith("selected: 2 of 131 keys per query, gathered; ")
        [dispatch] = explain_path(layer, x[:, :101])
        assert str(dispatch).startswith("selected: 2 of 101 keys per query, as a mask; ")
