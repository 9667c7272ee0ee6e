"""Performer attention: random features, their estimate of the softmax, the causal form, scales, segments, the state."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from comparison import CAUSAL, assert_same, assert_same_gradients, heads_of, random, random_biases
from torch import Tensor

from attnlab import masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.performer import PerformerAttention
from attnlab.models.performer.performer import orthogonal_gaussian
from attnlab.models.performer.reference import reference
from attnlab.ops.scan import NormalizedScan

B, N, H, D, d = 2, 11, 3, 15, 5


def made(**options: Any) -> PerformerAttention:
    torch.manual_seed(0)
    return random_biases(PerformerAttention(D, H, **{"num_features": 7, **options}).double().eval())


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def three_tokens(causal: bool, **options: Any) -> list[float]:
    """One feature, ω = 1, d_k = 1: φ(k) = exp(k - k²/2) is 1, 1, exp(1/2) for the keys 0, 2, 1; 21, 42, 63."""
    layer = PerformerAttention(4, 4, causal=causal, bias=False, num_features=1, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.projection.fill_(1)
        layer.qkv.weight[4, 0] = layer.qkv.weight[8, 1] = layer.output.weight[0, 0] = 1
        return layer(torch.tensor([[[0.0, 21, 0, 0], [2, 42, 0, 0], [1, 63, 0, 0]]]))[0, :, 0].tolist()


def test_three_tokens() -> None:
    last = (21 + 42 + 63 * math.sqrt(math.e)) / (2 + math.sqrt(math.e))
    assert three_tokens(causal=True) == pytest.approx([21, 31.5, last])
    assert three_tokens(causal=False) == pytest.approx([last] * 3)


@CAUSAL
def test_a_loop_over_states(causal: bool) -> None:
    layer, x = made(causal=causal), tokens()
    heads = torch.zeros(B, N, D, dtype=torch.float64)
    q, k, v = heads_of(layer.qkv, x, H)
    for b in range(B):
        for h in range(H):
            states, S, z = [], torch.zeros(7, d, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
            for j in range(N):
                key = k[b, h, j] / d**0.25
                feature = torch.stack([(row @ key - key @ key / 2).exp() for row in layer.projection])
                S, z = S + torch.outer(feature, v[b, h, j]), z + feature
                states.append((S, z))
            for i in range(N):
                S, z = states[i] if causal else states[-1]
                feature = torch.stack([(row @ q[b, h, i] / d**0.25).exp() for row in layer.projection])
                heads[b, i, h * d : h * d + d] = feature @ S / (feature @ z)
    assert_same(layer(x), layer.output(heads))


def test_features_are_orthogonal_in_blocks_and_normally_distributed() -> None:
    omega = orthogonal_gaussian(17, 7, torch.Generator().manual_seed(0))
    assert omega.shape == (17, 7)
    for block in omega.split(7):
        products = block @ block.T
        assert_same(products - products.diag().diag(), torch.zeros_like(products))
    many = orthogonal_gaussian(70_000, 7, torch.Generator().manual_seed(1))
    assert many.mean(0).abs().max() < 0.02
    torch.testing.assert_close(many.T @ many / 70_000, torch.eye(7, dtype=torch.float64), rtol=0, atol=0.02)
    assert (many[::7].pow(4).mean(0) - 3).abs().max() < 0.25  # the fourth moment of a normal distribution
    assert (many[::7] > 0).double().mean() == pytest.approx(0.5, abs=0.01), "directions without a preferred sign"


def test_the_features_estimate_the_softmax_kernel_without_bias() -> None:
    q, k = random(2, 8, scale=0.4)
    estimate = (orthogonal_gaussian(80_000, 8, torch.Generator().manual_seed(0)) @ (q + k) / 8**0.25).exp().mean()
    estimate = estimate * (-(q @ q + k @ k) / (2 * math.sqrt(8))).exp()
    assert estimate.item() == pytest.approx(math.exp(q @ k / math.sqrt(8)), rel=0.02)


@CAUSAL
def test_the_error_against_softmax_attention_falls_with_the_features(causal: bool) -> None:
    torch.manual_seed(0)
    softmax, x, errors = MultiAttention(32, 4, causal=causal), random(2, 61, 32, scale=0.3).float(), []
    for m in (16, 64, 256, 1024):
        outs = []
        for seed in range(4):
            layer = PerformerAttention(32, 4, num_features=m, feature_seed=seed, causal=causal)
            layer.load_state_dict({"projection": layer.projection, **softmax.state_dict()})
            outs.append(layer(x))
        errors.append(((torch.stack(outs) - softmax(x)).norm() / 2 / softmax(x).norm()).item())
    assert all(few > 1.3 * more for few, more in pairwise(errors)), errors
    assert errors[-1] < 0.05


def test_the_default_number_of_features() -> None:
    sizes = {1: 1, 2: 1, 8: 16, 64: 266}
    assert {width: PerformerAttention(width, 1).num_features for width in sizes} == sizes


def test_features_follow_the_seed_and_are_saved() -> None:
    first, second, other = (PerformerAttention(D, H, feature_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.projection, second.projection)
    assert not torch.equal(first.projection, other.projection)
    first.redraw(torch.Generator().manual_seed(9))
    assert not torch.equal(first.projection, second.projection)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.projection, other.projection)
    second.redraw(torch.Generator().manual_seed(9))
    assert torch.equal(first.projection, second.projection)
    first.reset_parameters()
    assert torch.equal(first.projection, PerformerAttention(D, H, feature_seed=3).projection)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    PerformerAttention(D, H, feature_seed=3).redraw(torch.Generator().manual_seed(1))
    torch.set_rng_state(state)
    once = PerformerAttention(D, H).projection
    assert not torch.equal(once, PerformerAttention(D, H).projection)


def test_kept_heads_have_the_same_features() -> None:
    layer, x = made(), tokens()
    fewer = layer.keep_heads([2, 0])
    weights = layer.attention_weights(x)
    weights[:, 1] = 0
    assert_same(fewer(x), layer.apply_weights(weights, x))


IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 0, 0, 2, 2, 1], [5, 5, 5, 3, 3, 3, 3, 9, 9, 9, 5]])
MASKS = {
    "no mask": None,
    "right padding": masks.padding(torch.tensor([N, N - 4])),
    "left padding": masks.padding(torch.tensor([N, N - 4]), side="left", max_length=N),
    "interleaved documents": masks.documents(IDS),
    "padded documents": masks.documents(IDS) & masks.padding(torch.tensor([N, N - 3])),
}


@CAUSAL
@pytest.mark.parametrize("name", MASKS)
def test_keys_of_any_size(name: str, causal: bool) -> None:
    """In float32 the features of a key may be smaller than the smallest number."""
    layer, mask = made(causal=causal), MASKS[name]
    x = (tokens() + 5 * random(B, N, 1) * random(1, 1, D)).requires_grad_()
    allowed = None if mask is None else (mask & masks.causal() if causal else mask).materialize(N)
    if causal and allowed is None:
        allowed = masks.causal().materialize(N)
    allowed = allowed if allowed is None else allowed.expand(B, H, N, N)
    log_norms = heads_of(layer.qkv, x, H)[1].square().sum(-1) / (2 * math.sqrt(d))
    assert log_norms.max() > 100
    expected, sources = reference(layer, x, allowed), [x, *layer.parameters()]
    assert_same_gradients((layer(x, mask=mask), sources), (expected, sources), 1e-9)
    assert_same(layer.apply_weights(layer.attention_weights(x, mask=mask), x, mask=mask), expected, 1e-9)
    single = layer.float()(x.float(), mask=mask)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-3)


def scan(log_scale: Tensor, mask: masks.Mask) -> NormalizedScan:
    n = log_scale.shape[-1]
    q, k = random(2, 1, 1, n, 3).exp().float()
    return NormalizedScan(q, k, mask.bind(n, shape=(1, 1)), log_scale.float()[None, None])


SCALES = torch.tensor([0.0, 700, -700, -650, -2000, -1900, 3, 1])
SEGMENTED = {
    "one document": masks.documents(torch.zeros(8, dtype=torch.long)),
    "documents": masks.documents(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])),
    "interleaved": masks.documents(torch.tensor([4, 2, 4, 2, 0, 0, 4, 1])),
}


@CAUSAL
@pytest.mark.parametrize("name", SEGMENTED)
def test_scales_far_apart_do_not_underflow(name: str, causal: bool) -> None:
    """Neither a later key nor one of another document makes a key vanish, whatever their scales."""
    mask = masks.causal() & SEGMENTED[name] if causal else SEGMENTED[name]
    ours, values = scan(SCALES, mask), random(1, 1, 8, 2)
    allowed = mask.materialize(8)
    log_weights = (ours.q @ ours.k.mT).double().log() + SCALES.double()
    weights = log_weights.masked_fill(~allowed, -torch.inf).softmax(-1)
    assert_same(ours.apply(values.float()).double(), weights @ values, 1e-5)
    assert_same(ours.materialize().double(), weights, 1e-5)


def test_scales_far_apart_in_steps() -> None:
    mask = masks.causal() & masks.documents(torch.tensor([0, 0, 1, 1, 2, 2, 2, 3]))
    values, outs, state = random(1, 1, 8, 2).float(), [], ()
    whole = scan(SCALES, mask)
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 8)):
        part = mask.bind(stop - start, stop, shape=(1, 1))
        rows = slice(start, stop)
        piece = NormalizedScan(whole.q[:, :, rows], whole.k[:, :, rows], part, SCALES[None, None, rows])
        out, state = piece.step(values[:, :, rows], state)
        outs.append(out)
    assert_same(torch.cat(outs, 2), whole.apply(values), 1e-6)


CONTINUED = {
    "left padding": masks.padding(torch.tensor([N, N - 4]), side="left", max_length=N),
    "documents": masks.documents(torch.tensor([5, 5, 5, 5, 5, 2, 2, 9, 9, 9, 4])),
    "documents per item": masks.documents(torch.tensor([[5] * 5 + [2, 2, 9, 9, 9, 4], [0] + [1] * 10])),
}


@pytest.mark.parametrize("name", CONTINUED)
@torch.no_grad()
def test_decoding_under_a_mask_matches_the_full_pass(name: str) -> None:
    layer, x, mask = made(causal=True), 4 * tokens(), CONTINUED[name]
    cache = layer.make_cache(N)
    steps = [layer(part, mask=mask, cache=cache) for part in x.split([5, 1, 3, 2], 1)]
    assert_same(torch.cat(steps, 1), layer(x, mask=mask))


def test_the_state_does_not_grow() -> None:
    layer, sizes = made(causal=True), []
    cache = layer.make_cache(1)
    with torch.no_grad():
        for length in (1, 7, 70):
            layer(tokens(length), cache=cache)
            sizes.append(cache.bytes)
    assert sizes == [B * H * (7 * (d + 1) + 1) * 8] * 3


def test_a_later_token_has_no_influence_however_large() -> None:
    layer, x = made(causal=True).float(), tokens().float()
    out = layer(x)
    for size in (1e3, 1e-3):
        changed = x.clone()
        changed[:, 7:] *= size
        assert torch.equal(layer(changed)[:, :7], out[:, :7])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("num_features", 0, ValueError), ("num_features", 2.5, TypeError), ("feature_seed", "7", TypeError)],
)
def test_bad_options_are_refused(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} must be"):
        PerformerAttention(D, H, **{name: value})
