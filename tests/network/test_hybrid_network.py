"""Networks of several mechanisms: their layers, options and caches, and saving and loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from attnlab.catalog import registry
from attnlab.network import Block, Network
from attnlab.network.pruning import prune_heads
from attnlab.nn.cache import KVCache, RecurrentState
from attnlab.nn.layer_caches import LayerCaches
from attnlab.utils.errors import UserError

B, N, D, KINDS = 3, 83, 12, 11
TOKENS = ("tokens", KINDS)
MIXED = "multihead,slidingwindow,linear,chunked,forgetting"
OPTIONS = {
    "num_heads": 2,
    "bias": False,
    "multihead": {"positions": "rotary"},
    "slidingwindow": {"window_size": 5, "dilation": 3, "positions": "alibi"},
    "linear": {"num_heads": 3, "feature_map": "relu"},
    "chunked": {"chunk_size": 7},
}


def hybrid(model: str = MIXED, options: dict[str, Any] | None = None, **more: Any) -> Network:
    torch.manual_seed(0)
    arguments = {"length": N, "embed_dim": D, "layers": 6, "causal": True, "position_embedding": "none", **more}
    chosen = OPTIONS if options is None else options
    return Network(model, TOKENS, TOKENS, options=chosen, **arguments).double().eval()


def tokens(length: int = N) -> Tensor:
    return torch.randint(KINDS, (B, length), generator=torch.Generator().manual_seed(1))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_hybrid_network_is_the_composition_of_its_layers() -> None:
    net = hybrid(position_embedding="learned")
    made: dict[str, dict[str, Any]] = {  # with their options written out
        "multihead": {"num_heads": 2, "bias": False, "positions": "rotary"},
        "slidingwindow": {"num_heads": 2, "bias": False, "window_size": 5, "dilation": 3, "positions": "alibi"},
        "linear": {"num_heads": 3, "bias": False, "feature_map": "relu"},
        "chunked": {"num_heads": 2, "bias": False, "chunk_size": 7},
        "forgetting": {"num_heads": 2, "bias": False},
    }
    x = net.position_embedding(net.embed(tokens()))
    for block, name in zip(net.blocks, [*made, "multihead"], strict=True):
        layer = registry.load(name)(embed_dim=D, causal=True, **made[name]).double().eval()
        assert isinstance(block, Block)
        layer.load_state_dict(block.attention.state_dict())
        x = x + layer(block.norm1(x))
        assert block.mlp is not None
        x = x + block.mlp(block.norm2(x))
    same(net(tokens()), net.readout(net.norm(x)))


def test_always_causal_and_other_layers_can_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = registry.load("linear")
    monkeypatch.setattr(linear, "card", replace(linear.card, always_causal=True))
    net = hybrid("linear,multihead", {"num_heads": 2}, layers=2, causal=False)
    assert [layer.causal for layer in net.mechanisms()] == [True, False]
    assert net.caches() is None


def test_gradients_reach_every_layer() -> None:
    net = hybrid().train()
    net(tokens()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


# Caches


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1, 2, 3), (70, 71, 75), (40, 41)])
def test_cached_decoding_matches_the_full_pass(cuts: tuple[int, ...]) -> None:
    net, x = hybrid(), tokens()
    caches = net.caches()
    assert caches is not None
    parts = [net(part, caches=caches) for part in x.tensor_split(cuts, 1)[:-1]]
    parts += [net(token, caches=caches) for token in x[:, cuts[-1] :].split(1, 1)]
    same(torch.cat(parts, 1), net(x))
    assert [type(cache) for cache in caches] == [KVCache, KVCache, RecurrentState, KVCache, KVCache, KVCache]
    assert [getattr(cache, "window", None) for cache in caches] == [None, 13, None, 7, None, None]
    assert caches.num_seen == N


DECODING = [name for name in registry.names() if {"causal", "cache"} <= set(registry.entry(name).card.supports)]


@torch.no_grad()
@pytest.mark.parametrize("model", DECODING)
def test_every_mechanism_decodes_beside_another(model: str) -> None:
    options = {"num_heads": 2} if "num_heads" in {o.name for o in registry.entry(model).options} else {}
    net, x = hybrid(f"{model},multihead", {"multihead": {"num_heads": 2}, model: options}, layers=2), tokens(13)
    caches, again = net.caches(), net.caches()
    assert caches is not None
    assert again is not None
    same(net(x[:, :7], caches=caches), net(x)[:, :7])
    again.load_state_dict(caches.state_dict())
    again.reorder(torch.tensor([2, 0]))
    for i in range(7, 13):
        same(net(x[:, i : i + 1], caches=caches), net(x)[:, i : i + 1])
        same(net(x[[2, 0], i : i + 1], caches=again), net(x[[2, 0]])[:, i : i + 1])
    sizes = caches.sizes()
    assert all(size.bytes_per_token + size.bytes_per_sequence > 0 for size in sizes)
    assert (sizes[0].kind == "state") == (registry.load(model).cache_type is not KVCache)


@torch.no_grad()
def test_window_caches_stay_small_after_a_long_prompt() -> None:
    net = hybrid("slidingwindow,multihead", {"num_heads": 2, "window_size": 5}, layers=2)
    x, caches = tokens(1_500), net.caches()
    assert caches is not None
    net(x[:, :1_000], caches=caches)
    parts = [net(token, caches=caches) for token in x[:, 1_000:1_100].split(1, 1)]
    assert caches[0].bytes < 100 * 2 * D * 8 * B < caches[1].bytes / 10
    same(torch.cat(parts, 1), net(x[:, :1_100])[:, 1_000:])


@torch.no_grad()
def test_beams_are_reordered_in_every_layer() -> None:
    net, x, items = hybrid(), tokens(), torch.tensor([2, 0, 0, 1])
    caches = net.caches()
    assert caches is not None
    net(x[:, :60], caches=caches)
    kept = caches.copy()
    caches.reorder(items)
    same(net(x[items, 60:63], caches=caches), net(x[items, :63])[:, 60:])
    same(net(x[:, 60:63], caches=kept), net(x[:, :63])[:, 60:])  # the copy is not affected
    with pytest.raises(IndexError):
        caches.reorder(torch.tensor([7]))
    same(net(x[items, 63:64], caches=caches), net(x[items, :64])[:, 63:])


@torch.no_grad()
def test_crop() -> None:
    net, x = hybrid("multihead,slidingwindow", {"num_heads": 2, "window_size": 5}, layers=2), tokens()
    caches = net.caches()
    assert caches is not None
    net(x[:, :30], caches=caches)
    caches.crop(27)
    same(net(x[:, 27:31], caches=caches), net(x[:, :31])[:, 27:])

    net(tokens(1_000), caches=(long := net.caches()))
    assert long is not None
    net(x[:, :1], caches=long)  # drops what left the window
    with pytest.raises(ValueError, match="layer 1: a cache with window=5 cannot be cropped to 50 tokens"):
        long.crop(50)
    assert [cache.num_seen for cache in long] == [1_001, 1_001], "a refused crop changes no layer"

    net = hybrid()
    caches = net.caches()
    assert caches is not None
    net(x, caches=caches)
    with pytest.raises(ValueError, match=r"layer 2 keeps a recurrent state, .*; copy\(\) the caches before tokens"):
        caches.crop(3)
    assert [cache.num_seen for cache in caches] == [N] * 6
    caches.reset()
    assert (caches.num_seen, caches.bytes) == (0, 0)


@torch.no_grad()
def test_sizes_by_hand() -> None:
    net, d = hybrid(), 8  # bytes of a number
    caches = net.caches()
    assert caches is not None
    with pytest.raises(ValueError, match="the caches are empty; call the network with them first"):
        caches.sizes()
    net(tokens(), caches=caches)
    full, state = 2 * D * d, 3 * 4 * 5 * d  # keys and values; 3 heads of 4 x (4 + 1)
    gates = 2 * d  # forgetting attention also caches one number per head
    sizes = [(size.kind, size.bytes_per_token, size.bytes_per_sequence) for size in caches.sizes()]
    assert sizes == [
        ("keys and values", full, 0),
        ("window", 0, 13 * full),
        ("state", 0, state),
        ("window", 0, 7 * full),
        ("keys and values", full + gates, 0),
        ("keys and values", full, 0),
    ]
    total = 3 * full + gates, 20 * full + state
    assert (caches.bytes_per_token, caches.bytes_per_sequence) == total
    last = caches.report().split("\n")[-1]
    assert last.split() == ["total", *(f"{n:,}" for n in total)]
    assert repr(caches) == f"LayerCaches of 6 layers: {N} tokens seen, {caches.bytes:,} bytes"


@torch.no_grad()
def test_saved_caches_continue() -> None:
    net, x = hybrid(), tokens()
    caches, again = net.caches(), net.caches()
    assert caches is not None
    assert again is not None
    again.load_state_dict(load(save(caches.state_dict())))  # empty
    assert again.num_seen == 0
    net(x[:, :50], caches=caches)
    again.load_state_dict(load(save(caches.state_dict())))
    for part in x[:, 50:].split(1, 1):
        same(net(part, caches=again), net(part, caches=caches))


def of_saved(change: str) -> dict[str, Tensor]:
    """A saved cache with one change."""
    caches = hybrid("multihead,linear,slidingwindow", {"num_heads": 2, "window_size": 5}, layers=3).caches()
    assert caches is not None
    with torch.no_grad():
        hybrid("multihead,linear,slidingwindow", {"num_heads": 2, "window_size": 5}, layers=3)(tokens(), caches=caches)
    state = caches.state_dict()
    window = torch.tensor([N, N - 3])
    changes: dict[str, dict[str, Tensor]] = {
        "kind": {"1.KVCache.0": torch.ones(1)},
        "layer": {"7.KVCache.0": torch.ones(1)},
        "name": {"0.KVCache.x": torch.ones(1)},
        "count": {"0.KVCache.seen": torch.tensor([3, 0])},
        "negative": {"1.RecurrentState.seen": torch.tensor([-3, 0])},
        "capacity": {"0.KVCache.seen": torch.tensor([10**9, 10**9 - N])},
        "other lengths": {"1.RecurrentState.seen": torch.tensor([3, 0])},
        "half a window": {f"2.KVCache.{i}": state[f"2.KVCache.{i}"][..., -3:, :] for i in range(2)},
        "floats": {"0.KVCache.seen": torch.tensor([3.0, 0.0])},
    }
    if change == "half a window":
        changes[change]["2.KVCache.seen"] = window
    if change == "missing":
        return {key: value for key, value in state.items() if key != "0.KVCache.seen"}
    return {**state, **changes[change]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kind", "'1.KVCache.0' is no part of these caches"),
        ("layer", "'7.KVCache.0' is no part of these caches"),
        ("name", "0.KVCache: a cache is saved as seen, 0, 1"),
        ("missing", "0.KVCache: a cache is saved as seen, 0, 1"),
        ("floats", "0.KVCache: a cache is saved as seen, 0, 1"),
        ("count", "0.KVCache: the tensors of 3 tokens must be"),
        ("negative", "1.RecurrentState: 1 tensors are no state after -3 tokens"),
        ("capacity", "0.KVCache: KVCache"),
        ("other lengths", "the layers have seen [83, 3, 83] tokens, not the same number"),
        ("half a window", "cannot continue from the last 3 of 83 tokens"),
    ],
)
def test_damaged_caches_are_refused_and_change_nothing(change: str, message: str) -> None:
    caches = hybrid("multihead,linear,slidingwindow", {"num_heads": 2, "window_size": 5}, layers=3).caches()
    assert caches is not None
    with pytest.raises(ValueError) as caught:
        caches.load_state_dict(of_saved(change))
    assert message in str(caught.value)
    assert (caches.num_seen, caches.bytes) == (0, 0)


def test_layer_caches_are_a_sequence() -> None:
    caches = LayerCaches([KVCache(7), RecurrentState()])
    assert len(caches) == 2
    assert [*caches] == [caches[0], caches[1]] == caches[:]
    assert LayerCaches([]).num_seen == 0


# Saving, loading and pruning


@torch.no_grad()
def test_saved_hybrids_load_and_keep_their_pruned_heads(tmp_path: Path) -> None:
    net = prune_heads(hybrid(), {0: [1], 2: [0, 2]})
    net.save_pretrained(tmp_path)
    again = Network.from_pretrained(tmp_path)
    assert [layer.num_heads for layer in again.mechanisms()] == [1, 2, 1, 2, 2, 2]
    same(again(tokens()), net(tokens()))
    assert again.to_config()["model"] == MIXED
    assert again.to_config()["options"] == OPTIONS


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"layers": 4}, ValueError, r"layers \(4\) must be at least 5"),
        ({"model": "multihead,nothing"}, UserError, "unknown model 'nothing'"),
        ({"model": "0*multihead"}, UserError, "needs a whole number of at least 1"),
        ({"options": {"colour": 1}}, TypeError, "no mechanism of .* has an option colour"),
        ({"options": {"linear": {"colour": 1}}}, TypeError, "linear has no option colour"),
        ({"options": {"linear": {"bias": torch.ones(1)}}}, TypeError, "saved as JSON, but linear is a dict"),
    ],
)
def test_wrong_networks_are_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hybrid(**changed)
