"""Reformer attention: the worked example, exactness with one bucket, rounds, causality, padding, and bad inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import CAUSAL, PADDED, assert_same, assert_same_gradients, padding_lengths, perturbed, random
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.reformer import ReformerAttention
from attnlab.nn.attention import UnsupportedError

B, N, H, D, d = 2, 23, 3, 15, 5
ONE_BUCKET = {"num_buckets": 1, "num_hashes": 1, "chunk_length": N}


def made(**options: Any) -> ReformerAttention:
    torch.manual_seed(0)
    options = {"num_buckets": 4, "num_hashes": 2, "chunk_length": 3, **options}
    return perturbed(ReformerAttention(D, H, **options))


def attended(layer: ReformerAttention, x: Tensor, **inputs: Any) -> Tensor:
    """Which keys each query attends to, Boolean (B, H, N, N)."""
    return layer.attention_weights(x, **inputs) > 0


@pytest.mark.parametrize(
    ("causal", "num_buckets", "expected"),
    [(False, 1, [56, 42, 28]), (False, 2, [63, 42, 21]), (True, 1, [21, 21, 28]), (True, 2, [21, 42, 21])],
)
def test_the_worked_example(causal: bool, num_buckets: int, expected: list[float]) -> None:
    """Tokens 0 and 2 have the same vector, token 1 the opposite one; scores of ±ln 2 / 2."""
    c = 2 if num_buckets == 2 else 3
    layer = ReformerAttention(4, 1, num_buckets=num_buckets, num_hashes=1, chunk_length=c, causal=causal, bias=False)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight[0, 0], layer.qkv.weight[4, 1] = math.log(2) / 2, 1
        nn.init.eye_(layer.output.weight)
        layer.rotations.copy_(torch.eye(4)[:, : num_buckets // 2])
    x = torch.tensor([[[1.0, 21, 0, 0], [-1, 42, 0, 0], [1, 63, 0, 0]]])
    assert layer(x)[0, :, 0].tolist() == pytest.approx(expected, rel=1e-4)


def exact(layer: ReformerAttention, x: Tensor, real: Tensor) -> Tensor:
    """Softmax attention to all other tokens, with shared queries and keys."""
    Q, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(2, -1))
    K = Q / (Q.square().sum(-1, keepdim=True) + 1e-6 * d).sqrt()
    allowed = real[:, None, None] & ~torch.eye(x.shape[1], dtype=torch.bool)
    allowed = allowed.tril() if layer.causal else allowed
    allowed = allowed | (~allowed.any(-1, keepdim=True) & torch.eye(x.shape[1], dtype=torch.bool))
    heads = F.scaled_dot_product_attention(Q, K, V, attn_mask=allowed, scale=1.0)
    return layer.output(heads.transpose(1, 2).flatten(2))


@CAUSAL
@PADDED
@pytest.mark.parametrize("options", [{}, {"chunk_length": 10**9}, {"num_hashes": 3}])
def test_with_one_bucket_it_is_exact(options: Any, padded: bool, causal: bool) -> None:
    layer, x = made(**{**ONE_BUCKET, **options}, causal=causal), random(B, N, D).requires_grad_()
    lengths, real = padding_lengths(B, N, padded)
    out, expected = layer(x, mask=masks.padding(lengths) if padded else None), exact(layer, x, real)
    sources = [x, *layer.parameters()]
    assert_same_gradients((out[real], sources), (expected[real], sources), 1e-12)


@CAUSAL
def test_with_more_buckets_or_shorter_chunks_it_is_not_exact(causal: bool) -> None:
    x, real = random(B, N, D), torch.ones(B, N, dtype=torch.bool)
    for options in ({"num_buckets": 4, "chunk_length": N - 1}, {"chunk_length": N // 3}):
        layer = made(**{**ONE_BUCKET, **options}, causal=causal)
        assert (layer(x) - exact(layer, x, real)).abs().max() > 1e-3
        assert layer.is_continuous(N) == (layer.num_buckets == 1)
    assert made(num_buckets=4, chunk_length=N).is_continuous(N)


@CAUSAL
def test_a_key_found_in_several_rounds_counts_once(causal: bool) -> None:
    one, three, x = made(num_hashes=1, causal=causal), made(num_hashes=3, causal=causal), random(B, N, D)
    assert not torch.equal(attended(three, x), attended(one, x))
    three.rotations.copy_(one.rotations.expand_as(three.rotations))
    assert_same(three(x), one(x))


@CAUSAL
def test_a_round_adds_keys(causal: bool) -> None:
    both, x = made(causal=causal), random(B, N, D)
    separate = []
    for r in range(2):
        layer = made(num_hashes=1, causal=causal)
        layer.rotations.copy_(both.rotations[:, r : r + 1])
        separate.append(attended(layer, x))
    used, alone = attended(both, x), torch.eye(N, dtype=torch.bool)
    union = separate[0] | separate[1]
    assert torch.equal(used & ~alone, union & ~alone)
    assert separate[0].sum(-1).max() <= (3 if causal else 5)
    assert union.sum() > separate[0].sum()


def test_a_causal_token_attends_to_its_bucket_or_to_itself() -> None:
    layer, x = made(num_hashes=1, causal=True), random(B, N, D)
    q = layer.qkv(x)[..., :D].unflatten(-1, (H, d)).transpose(1, 2)
    rotated = q @ layer.rotations[:, 0]
    buckets = torch.cat([rotated, -rotated], -1).argmax(-1)
    used = attended(layer, x)
    same = buckets.unsqueeze(-1) == buckets.unsqueeze(-2)
    assert not (used & ~same).any()
    first = ~(same.tril(-1)).any(-1)  # the first token of its bucket
    assert torch.equal(used.diagonal(dim1=-2, dim2=-1), first)
    assert 1 < first.sum(-1).max() <= layer.num_buckets


def test_the_chunks_of_the_paper_leak_under_a_causal_mask() -> None:
    """Whether token 1 attends to token 0 depends on token 2; in the layer it does not."""

    def weights(buckets: list[int]) -> list[list[int]]:
        order = sorted(range(len(buckets)), key=lambda i: (buckets[i], i))
        chunk = {token: rank // 2 for rank, token in enumerate(order)}
        return [[j for j in range(i) if chunk[i] - chunk[j] in (0, 1)] for i in range(len(buckets))]

    assert weights([0, 1])[1] == [0]
    assert weights([2, 9, 3, 4, 5])[1] == []
    layer, x = made(causal=True, chunk_length=2), random(B, N, D)
    full = layer.attention_weights(x)
    for n in (2, 5, 11):
        assert_same(layer.attention_weights(x[:, :n]), full[:, :, :n, :n])


@CAUSAL
def test_scattered_padding_moves_no_token(causal: bool) -> None:
    layer, x = made(causal=causal), random(B, N, D)
    keep = torch.rand(B, N, generator=torch.Generator().manual_seed(3)) < 0.6
    mask = masks.from_attention_mask(keep)
    out, weights = layer(x, mask=mask), layer.attention_weights(x, mask=mask)
    for b in range(B):
        assert_same(out[b, keep[b]], layer(x[b : b + 1, keep[b]])[0])
    first = keep.int().argmax(-1)
    assert not weights.transpose(1, 3)[~keep].any()
    if causal:  # padding attends to the first token
        for b in range(B):
            rows = weights[b, :, ~keep[b]]
            after = torch.arange(N)[~keep[b]] > first[b]
            assert torch.equal(rows[:, after], F.one_hot(first[b], N).to(rows).expand_as(rows[:, after]))


def test_the_seed_decides_the_rounds() -> None:
    x = random(B, N, D)
    first, same, other = made(hash_seed=3), made(hash_seed=3), made(hash_seed=4)
    assert_same(same(x), first(x))
    assert (other(x) - first(x)).abs().max() > 1e-3
    other.load_state_dict(first.state_dict())
    assert_same(other(x), first(x))
    other.reset_parameters()
    assert_same(other.rotations, made(hash_seed=4).rotations, 1e-6)


def test_pruned_heads_keep_their_buckets() -> None:
    layer, x = made(), random(B, N, D)
    assert_same(layer.keep_heads([0, 2]).attention_weights(x), layer.attention_weights(x)[:, [0, 2]])


@pytest.mark.slow
@CAUSAL
def test_one_exported_program_for_any_number_of_chunks(causal: bool) -> None:
    layer, length = made(causal=causal), torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(layer, (random(B, 7, D),), dynamic_shapes=({1: length},)).module()
    for n in (2, 3, 6, N):
        assert_same(program(random(B, n, D)), layer(random(B, n, D)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buckets": 5}, "^num_buckets must be even, or 1 for no hashing, not 5; try 6$"),
        ({"num_buckets": 0}, "^num_buckets must be at least 1, not 0$"),
        ({"num_hashes": 0}, "^num_hashes must be at least 1, not 0$"),
        ({"chunk_length": 0}, "^chunk_length must be at least 1, not 0$"),
        ({"hash_seed": None}, "^hash_seed must be an integer, not None$"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        made(**options)


def test_what_it_does_not_support_is_refused() -> None:
    layer, x = made(), random(B, N, D)
    with pytest.raises(UnsupportedError, match="segments"):
        layer(x, mask=masks.documents(torch.tensor([0] * 11 + [1] * (N - 11))))
    with pytest.raises(ValueError, match=r"dropout must be 0, not 0\.5"):
        layer.attention_map(x).apply(random(B, H, N, d), dropout=0.5)
