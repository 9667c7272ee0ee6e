"""The caches: memory, errors and contents. The conformance suite tests that decoding equals the full pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor

from attnlab import KVCache
from attnlab.catalog import registry
from attnlab.masks import BoundMask, causal, from_tensor, padding, prefix, sliding_window
from attnlab.models.longformer import LongformerAttention
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.network import Network
from attnlab.nn.attention import Attention, SequenceMixer, UnsupportedError
from attnlab.nn.cache import RecurrentState
from attnlab.ops.dispatch import explain_path

B, H, d, D = 2, 3, 4, 12


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def keys_and_values(start: int, stop: int, batch: int = B) -> tuple[Tensor, Tensor]:
    """Keys that contain their position, and values that contain its negative."""
    keys = torch.arange(start, stop, dtype=torch.float32)[:, None].expand(batch, H, stop - start, d)
    return keys, -keys


def feed(cache: KVCache, count: int) -> tuple[Tensor, Tensor]:
    cache.admit(torch.zeros(B, count, D))
    return cache.update(*keys_and_values(cache.num_seen, cache.num_seen + count))


def positions(keys: Tensor) -> list[int]:
    return [int(key) for key in keys[0, 0, :, 0]]


def test_memory_doubles_up_to_the_capacity() -> None:
    cache, token = KVCache(300), 2 * B * H * d * 4
    assert (cache.bytes, cache.bytes_per_token) == (0, 0)
    sizes = []
    for _ in range(300):
        feed(cache, 1)
        sizes.append(cache.bytes // token)
    assert sorted(set(sizes)) == [64, 130, 262, 300]
    assert cache.bytes_per_token == token
    assert repr(cache) == f"KVCache(capacity=300): 300 seen, 300 kept, {300 * token:,} bytes"


def test_memory_with_a_window_is_bounded() -> None:
    cache, most = KVCache(10_000, window=50), 0
    for _ in range(1000):
        feed(cache, 1)
        most = max(most, cache.bytes // (2 * B * H * d * 4))
    assert most <= 2 * 50 + 2
    assert cache.start >= 1000 - 2 * 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KVCache(0), "capacity must be an integer of at least 1, not 0"),
        (lambda: KVCache(7, window=0), "window must be an integer of at least 1, not 0"),
        (lambda: KVCache(True), "capacity must be an integer"),
        (lambda: feed(full(), 3), r"has seen 5 of at most 7 tokens, and 3 more do not fit; .* KVCache\(capacity=8\)"),
        (lambda: full().admit(torch.zeros(3, 1, D)), r"holds 2 sequences, not 3; use reorder\(\), or reset\(\)"),
        (lambda: full().admit(torch.zeros(B, 1, D, device="meta")), "is on cpu, x on meta"),
        (lambda: full().crop(6), r"crop\(length\) takes 0 to 5, the number of tokens seen, not 6"),
        (lambda: full().crop(-1), "not -1"),
    ],
)
def test_invalid_arguments_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def full() -> KVCache:
    cache = KVCache(7)
    feed(cache, 5)
    return cache


def test_a_window_cannot_be_cropped_to_dropped_keys() -> None:
    cache = KVCache(500, window=10)
    for _ in range(100):
        feed(cache, 1)
    least = cache.start + 9
    assert 9 < least < 100
    with pytest.raises(ValueError, match=rf"cannot be cropped to {least - 1} tokens, .* minimum is {least}$"):
        cache.crop(least - 1)
    cache.crop(least)
    keys, _ = feed(cache, 1)
    assert positions(keys)[-10:] == list(range(least - 9, least + 1))


@pytest.mark.parametrize(
    ("is_causal", "cache", "options", "error", "message"),
    [
        (False, KVCache(9), {}, ValueError, "build the layer with causal=True, or combine the mask"),
        (False, KVCache(9), {"mask": sliding_window(2)}, ValueError, "a cache needs a causal mask"),
        (False, KVCache(9), {"mask": causal() | prefix(2)}, ValueError, "a cache needs a causal mask"),
        (True, KVCache(9, window=4), {}, ValueError, r"reaches all earlier keys; combine it with sliding_window\(4\)"),
        (True, KVCache(9, window=4), {"mask": sliding_window(6)}, ValueError, "the mask reaches 5 keys back"),
        (True, {}, {}, TypeError, r"cache must be a KVCache \(see make_cache\), not a dict"),
        (True, RecurrentState(), {}, TypeError, "cache must be a KVCache"),
        (True, KVCache(9), {"context": torch.zeros(B, 5, D)}, ValueError, "context= or cache=, not both"),
        (True, KVCache(9), {"attn_bias": torch.zeros(5, 4)}, ValueError, "does not broadcast"),
    ],
)
@torch.no_grad()
def test_a_cache_whose_result_would_differ_is_refused(
    is_causal: bool, cache: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MultiAttention(D, H, causal=is_causal)(torch.zeros(B, 5, D), cache=cache, **options)
    assert getattr(cache, "num_seen", 0) == 0


@torch.no_grad()
def test_a_window_as_long_as_that_of_the_mask_is_accepted() -> None:
    cache = KVCache(9, window=5)
    MultiAttention(D, H, causal=True)(torch.zeros(B, 5, D), mask=sliding_window(5), cache=cache)
    assert cache.num_seen == 5


@torch.no_grad()
def test_masks_and_biases_refer_to_all_keys() -> None:
    layer, x = MultiAttention(D, H, causal=True).double(), torch.randn(B, 211, D, dtype=torch.float64)
    bias = torch.randn(H, 211, 211, dtype=torch.float64)
    matrix = from_tensor(torch.rand(B, 211, 211) > 0.2)
    whole = layer(x, mask=matrix & sliding_window(9), attn_bias=bias)
    cache, parts = KVCache(211, window=9), []
    for start in range(0, 211, 7):
        stop = min(start + 7, 211)
        mask = from_tensor(matrix.materialize(211)[:, 0, start:stop, :stop]) & sliding_window(9)
        parts.append(layer(x[:, start:stop], mask=mask, attn_bias=bias[:, start:stop, :stop], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert cache.start > 0


@torch.no_grad()
def test_decoding_needs_no_mask_matrix() -> None:
    layer, x = MultiAttention(D, H, causal=True), torch.randn(B, 300, D)
    cache = KVCache(400)
    layer(x, cache=cache)
    (record,) = explain_path(layer, x[:, :1], cache=cache)
    assert record.name == "fused"
    (record,) = explain_path(layer, x[:, :1], cache=cache, mask=sliding_window(8))
    assert record.name == "window"
    (record,) = explain_path(
        layer, x[:, :1], cache=cache, mask=padding(torch.tensor([3, 9]), side="left", max_length=300)
    )
    assert record.name == "matrix"


# A state of constant size


class Sums(SequenceMixer):
    """The sum of all tokens so far: the simplest recurrence."""

    card = replace(SelfAttention.card, supports=("causal", "cache"))
    cache_type = RecurrentState

    def _forward(self, x: Tensor, mask: BoundMask | None, cache: RecurrentState | None = None) -> Tensor:
        before = cache.state[0] if cache is not None and cache.state else x.new_zeros(len(x), 1, self.embed_dim)
        sums = before + x.cumsum(1)
        if cache is not None and x.shape[1]:
            cache.replace(x.shape[1], sums[:, -1:])
        return sums


@torch.no_grad()
def test_a_state_does_not_grow_and_can_be_reordered() -> None:
    layer, x = Sums(D, causal=True), torch.randn(B, 7, D)
    cache = layer.make_cache(100)
    assert isinstance(cache, RecurrentState)
    layer(x[:, :3], cache=cache)
    size = cache.bytes
    layer(x[:, 3:5], cache=cache)
    assert (cache.num_seen, cache.bytes, cache.bytes_per_token) == (5, size, 0)
    assert repr(cache) == f"RecurrentState(): 5 seen, {B * D * 4} bytes"
    items = torch.tensor([1, 1, 0])
    cache.reorder(items)
    torch.testing.assert_close(layer(x[items, 5:], cache=cache), layer(x)[items, 5:])
    with pytest.raises(ValueError, match=r"holds 3 sequences, not 2; use reorder\(\), or reset\(\)"):
        layer(x[:, :1], cache=cache)
    cache.reset()
    assert (cache.num_seen, cache.bytes, cache.state) == (0, 0, ())


def test_make_cache() -> None:
    assert repr(MultiAttention(D, H, causal=True).make_cache(7, window=3)).startswith("KVCache(capacity=7, window=3)")
    with pytest.raises(ValueError, match="Sums keeps a state of constant size; it takes no window"):
        Sums(D, causal=True).make_cache(7, window=3)
    with pytest.raises(UnsupportedError, match="does not support cache"):
        LongformerAttention(D, H).make_cache(7)
    with pytest.raises(TypeError, match="cache must be a RecurrentState"):
        Sums(D, causal=True)(torch.zeros(B, 1, D), cache=KVCache(9))


def test_the_number_of_cached_tensors_is_fixed() -> None:
    cache = KVCache(9)
    latent, rotated = torch.randn(B, 3, 5), torch.randn(B, 3, 2)
    kept = cache.update(latent, rotated)
    assert [t.shape for t in kept] == [(B, 3, 5), (B, 3, 2)]
    assert cache.bytes_per_token == B * (5 + 2) * 4
    with pytest.raises(ValueError, match="keeps 2 tensors per token, not 1"):
        cache.update(latent)


# Tensors that do not continue the cache, and calls that fail


ONE = random(B, H, 1, d)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ((ONE.bfloat16(), ONE), r"float32 and got torch.bfloat16 \(tensor 1"),
        ((ONE, ONE.double()), r"float32 and got torch.float64 \(tensor 2"),
        ((ONE, ONE[:1]), r"\(2, 3, 4\) per token and got \(1, 3, 4\) \(tensor 2 of 2"),
        ((ONE[:, :1], ONE), r"got \(2, 1, 4\) \(tensor 1 of 2"),
        ((ONE, ONE[..., :1]), r"got \(2, 3, 1\) \(tensor 2 of 2"),
        ((ONE, random(B, H, 2, d)), r"the same number of tokens, not \[1, 2\]"),
        ((ONE.to("meta"), ONE), "is on cpu, the new tensors on meta"),
        ((random(B, H, 3, d), random(B, H, 3, d)), r"room for 2 more tokens, not 3; call admit\(\) before update"),
        ((ONE,), "keeps 2 tensors per token, not 1"),
    ],
)
def test_update_refuses_other_tensors(new: tuple[Tensor, ...], message: str) -> None:
    cache = full()
    with pytest.raises(ValueError, match=message):
        cache.update(*new)
    assert cache.num_seen == 5
    assert positions(feed(cache, 2)[0]) == list(range(7))


def test_replace_refuses_another_state() -> None:
    cache = RecurrentState()
    cache.replace(2, random(B, d))
    for state, message in (
        ((random(B, d, dtype=torch.bfloat16),), "torch.float32 and got torch.bfloat16"),
        ((random(B, d + 1),), r"of shape \(2, 4\) per token and got \(2, 5\)"),
        ((random(B, d), random(B, d)), "keeps 1 tensors per token, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.replace(1, *state)
    assert cache.num_seen == 2


CACHED = supporting("cache", among=REPRESENTATIVES)
WITH_KV_CACHE = [name for name in CACHED if registry.load(name).cache_type is KVCache]


@pytest.mark.parametrize("name", WITH_KV_CACHE)
@torch.no_grad()
def test_a_cache_filled_under_autocast_is_not_continued_in_float32(name: str) -> None:
    layer, x = registry.load(name)(24, causal=True).eval(), random(B, 7, 24)
    for outside in (True, False):
        cache = KVCache(9)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
            layer(x[:, :3], cache=cache)
        before, size = cache.num_seen, cache.bytes
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=not outside),
            pytest.raises(ValueError, match=r"holds torch.* and got torch.* under the autocast in which it was filled"),
        ):
            layer(x[:, 3:], cache=cache)
        assert (cache.num_seen, cache.bytes) == (before, size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
            out, expected = layer(x[:, 3:], cache=cache), layer(x)[:, 3:]
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-2 if outside else 1e-5)


class Broken(Exception):  # noqa: N818
    """Raised by a failing layer of a test."""


def fail(*_: object) -> None:
    raise Broken


@pytest.mark.parametrize(("name", "size"), [*((name, None) for name in CACHED), *((name, 5) for name in WITH_KV_CACHE)])
@torch.no_grad()
def test_a_failed_call_leaves_the_cache_unchanged(name: str, size: int | None) -> None:
    """The output projection fails, after the keys were written and a full window was moved."""
    layer, x = registry.load(name)(24, causal=True).double().eval(), random(B, 139, 24, dtype=torch.float64)
    mask = None if size is None else sliding_window(size)
    cache = layer.make_cache(139, window=size)
    layer(x[:, :60], mask=mask, cache=cache)
    before = (cache.num_seen, cache.start, cache.bytes)
    hook = layer.get_submodule("output").register_forward_hook(fail)
    with pytest.raises(Broken):
        layer(-x[:, 60:], mask=mask, cache=cache)
    hook.remove()
    assert (cache.num_seen, cache.start, cache.bytes) == before
    out = layer(x[:, 60:], mask=mask, cache=cache)
    torch.testing.assert_close(out, layer(x, mask=mask)[:, 60:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_failed_block_leaves_all_caches_unchanged() -> None:
    network = Network("multihead", ("tokens", 11), ("tokens", 11), length=7, embed_dim=16, causal=True).eval()
    x, caches = torch.randint(0, 11, (B, 7)), network.caches()
    assert caches is not None
    network(x[:, :3], caches=caches)
    hook = network.blocks[1].register_forward_hook(fail)
    with pytest.raises(Broken):
        network(x[:, 3:], caches=caches)
    hook.remove()
    assert [cache.num_seen for cache in caches] == [3, 3]
    torch.testing.assert_close(network(x[:, 3:], caches=caches), network(x)[:, 3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("made", [MultiAttention(D, H, causal=True), Sums(D, causal=True)])
def test_gradients_are_refused_and_inference_mode_mixes(made: SequenceMixer) -> None:
    cache, x, parts = made.make_cache(9), random(B, 7, D), []
    with pytest.raises(ValueError, match="a cache gives no gradients"):
        made(x.clone().requires_grad_(), cache=cache)
    assert cache.num_seen == 0
    for piece, inside in zip(x[:, :5].split([3, 1, 1], 1), (True, False, True), strict=True):
        with torch.inference_mode(inside), torch.no_grad():
            parts.append(made(piece, cache=cache))
    with torch.inference_mode():
        other = cache.copy()
        made(-x[:, :2], cache=cache)
    assert not any(t.is_inference() for t in other._tensors)
    with torch.no_grad():
        parts.append(made(x[:, 5:], cache=other))
    torch.testing.assert_close(torch.cat(parts, 1), made(x).detach(), rtol=0, atol=1e-5)
    assert (cache.num_seen, other.num_seen) == (7, 7)


# Against a plain list of tokens


class Kept(Attention):
    """Records the tokens that the cache keeps, or fails after updating it."""

    card = replace(SelfAttention.card, supports=("causal", "arbitrary_mask", "cache"))
    fails = False
    kept: list[list[int]]

    def _forward(self, x: Tensor, mask: BoundMask | None, cache: KVCache | None = None) -> Tensor:
        assert cache is not None
        first, second = cache.update(x, -x)
        if self.fails:
            raise Broken
        assert torch.equal(first, -second)
        self.kept = first[..., 0].long().tolist()
        return x


class CacheAgainstLists(RuleBasedStateMachine):
    """Caches and the lists of tokens that they must hold, under random sequences of operations."""

    caches = Bundle("caches")
    window: int | None

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.lists: dict[int, list[list[int]]] = {}
        self.made: list[KVCache] = []

    def keep(self, cache: KVCache, lists: list[list[int]]) -> KVCache:
        self.lists[id(cache)] = lists
        self.made.append(cache)
        return cache

    @initialize(target=caches, size=st.none() | st.integers(1, 9))
    def start(self, size: int | None) -> KVCache:
        self.window = size
        return self.keep(KVCache(311, window=size), [[] for _ in range(B)])

    def call(
        self, cache: KVCache, count: int, batch: int, dtype: torch.dtype = torch.float64, fails: bool = False
    ) -> None:
        layer = Kept(1, causal=True)
        layer.fails = fails
        new = torch.arange(self.tokens, self.tokens + batch * count, dtype=dtype).reshape(batch, count, 1)
        self.tokens += batch * count
        layer(new, mask=None if self.window is None else sliding_window(self.window), cache=cache)
        lists = self.lists[id(cache)]
        for row, more in zip(lists, new[..., 0].long().tolist(), strict=True):
            row.extend(more)
        assert layer.kept == [row[cache.start :] for row in lists]
        oldest = 0 if self.window is None else max(0, cache.num_seen - count - self.window + 1)
        assert cache.start <= oldest

    @rule(cache=caches, count=st.integers(0, 70))
    def append(self, cache: KVCache, count: int) -> None:
        full = cache.num_seen + count > cache.capacity
        with pytest.raises(ValueError, match="do not fit") if full else nullcontext():
            self.call(cache, count, len(self.lists[id(cache)]))

    @rule(cache=caches, count=st.integers(1, 70), failure=st.sampled_from(["layer", "batch", "dtype"]))
    def failed_append(self, cache: KVCache, count: int, failure: str) -> None:
        batch = len(self.lists[id(cache)])
        if cache.num_seen + count > cache.capacity or (failure != "layer" and not cache._tensors):
            return
        changes: dict[str, dict[str, Any]] = {"layer": {"fails": True}, "batch": {}, "dtype": {"dtype": torch.float32}}
        error: Any = pytest.raises(Broken) if failure == "layer" else pytest.raises(ValueError, match="the cache holds")
        with error:
            self.call(cache, count, batch + (failure == "batch"), **changes[failure])

    @rule(cache=caches, count=st.integers(0, 80))
    def crop(self, cache: KVCache, count: int) -> None:
        spare = cache.num_seen
        if self.window is not None and cache.start:
            spare = max(0, cache.num_cached - (self.window - 1))
        if count > spare:
            with pytest.raises(ValueError, match=r"crop\(length\) takes|cannot be cropped"):
                cache.crop(cache.num_seen - count)
        else:
            cache.crop(cache.num_seen - count)
            self.lists[id(cache)] = [row[: len(row) - count] for row in self.lists[id(cache)]]

    @rule(cache=caches, data=st.data(), inside=st.booleans())
    def select(self, cache: KVCache, data: st.DataObject, inside: bool) -> None:
        lists = self.lists[id(cache)]
        items = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=4))
        with torch.inference_mode(inside):
            cache.reorder(torch.tensor(items))
        if cache._tensors:  # a cache that holds nothing takes any batch
            self.lists[id(cache)] = [list(lists[item]) for item in items]

    @rule(target=caches, cache=caches, inside=st.booleans())
    def copy(self, cache: KVCache, inside: bool) -> KVCache:
        with torch.inference_mode(inside):
            other = cache.copy()
        return self.keep(other, [list(row) for row in self.lists[id(cache)]])

    @rule(cache=caches, batch=st.integers(1, 3))
    def reset(self, cache: KVCache, batch: int) -> None:
        cache.reset()
        self.lists[id(cache)] = [[] for _ in range(batch)]

    @invariant()
    def lengths_agree(self) -> None:
        for cache in self.made:
            assert all(len(row) == cache.num_seen for row in self.lists[id(cache)])


CacheAgainstLists.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestCacheAgainstLists = CacheAgainstLists.TestCase
