"""A pruned layer matches the original with the outputs of those heads set to zero; pruned networks are saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mechanisms import INDEPENDENT_OF_OPTIONS
from torch import Tensor, nn

import attnlab
from attnlab import KVCache, check_attention, masks
from attnlab.catalog import registry
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.network import Inputs, Network, Outputs
from attnlab.network.pruning import edit_heads, prune_heads
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.multihead import MultiHeadBase, OutputGate, QKNorm
from attnlab.training.network_file import load_network, save_network
from attnlab.utils.errors import UserError

B, N, M, D, H, d = 2, 11, 7, 20, 5, 4
POSITIONS = ("none", "rotary", "alibi", "t5")


def perturbed(layer: MultiHeadBase) -> Any:
    """The layer in float64 with perturbed parameters: biases of zero would hide errors."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def multihead(**options: Any) -> MultiAttention:
    return perturbed(MultiAttention(D, H, **options))


def grouped(**options: Any) -> GroupedQueryAttention:
    """Six heads of width 6 in an embedding of 20; each of the two key heads is shared by three heads."""
    return perturbed(GroupedQueryAttention(D, 6, **{"num_kv_heads": 2, "head_dim": 6, **options}))


def tokens(length: int = N, width: int = D) -> Tensor:
    return torch.randn(B, length, width, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def zeroed(layer: MultiHeadBase, heads: list[int], x: Tensor, **options: Any) -> Tensor:
    """The output with the columns of W_O for these heads set to zero."""
    weight = layer.output.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.unflatten(1, (layer.num_heads, layer.head_dim))[:, heads] = 0
        out = layer(x, **options)
        weight.copy_(original)
    return out


def assert_equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# A layer


@given(
    removed=st.sets(st.integers(0, 5), max_size=5),
    kv=st.sampled_from([1, 2, 3, 6]),
    positions=st.sampled_from(POSITIONS),
    bias=st.booleans(),
    causal=st.booleans(),
)
@torch.no_grad()
def test_pruned_heads_contribute_zero(removed: set[int], kv: int, positions: str, bias: bool, causal: bool) -> None:
    layer, x = grouped(num_kv_heads=kv, positions=positions, bias=bias, causal=causal), tokens()
    groups = [[head for head in range(g, g + 6 // kv) if head not in removed] for g in range(0, 6, 6 // kv)]
    kept = [head for group in groups for head in group]
    if len({len(group) for group in groups if group}) > 1:
        with pytest.raises(ValueError, match="cannot be kept alone"):
            prune_heads(layer, removed)
        return
    pruned = prune_heads(layer, removed)
    assert (pruned.num_heads, pruned.num_kv_heads) == (len(kept), sum(map(bool, groups)))
    assert_equal(pruned(x), zeroed(layer, [*removed], x))
    assert_equal(pruned.attention_weights(x), layer.attention_weights(x)[:, kept])
    assert_equal(pruned.apply_weights(pruned.attention_weights(x), x), pruned(x))
    if causal:
        cache = KVCache(N)
        assert_equal(torch.cat([pruned(part, cache=cache) for part in x.split([5, 1, 2, 3], 1)], 1), pruned(x))


def test_every_mechanism_with_heads_can_be_pruned() -> None:
    tested = []
    for name in registry.names():
        mechanism = registry.load(name)
        if issubclass(mechanism, MultiHeadBase) and name != "mamba2":  # it normalizes all heads together
            layer, x = perturbed(mechanism(embed_dim=32, num_heads=8)), tokens(width=32)
            if name == "talkingheads":  # without mixing, because other heads depend on each head
                nn.init.eye_(layer.scores)
                nn.init.eye_(layer.mixture)
            shared = layer.num_kv_heads == 1  # then any head; otherwise all heads of the first key head
            removed = [0] if shared else list(range(layer.num_heads // layer.num_kv_heads))
            assert_equal(prune_heads(layer, removed)(x), zeroed(layer, removed, x))
            tested.append(name)
    assert {"multihead", "groupedquery"} <= set(tested)


def test_pruning_twice_uses_the_new_indices() -> None:
    layer, x = multihead(positions="alibi"), tokens()
    assert_equal(prune_heads(prune_heads(layer, [0, 2]), [1])(x), prune_heads(layer, [0, 2, 3])(x))
    assert_equal(layer.keep_heads([4, 1])(x), prune_heads(layer, [0, 2, 3])(x))


@torch.no_grad()
def test_pruned_layers_take_masks_biases_context_and_packed_batches() -> None:
    layer, removed, kept = multihead(), [1, 2], [0, 3, 4]
    pruned, x, context = prune_heads(layer, removed), tokens(), tokens(M)
    mask = masks.padding(torch.tensor([5, 11]), mask_queries=True) & masks.sliding_window(3)
    assert_equal(pruned(x, mask=mask), zeroed(layer, removed, x, mask=mask))
    scattered = torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(0)) < 0.8
    bias = torch.randn(H, N, N, dtype=torch.float64)
    assert_equal(
        pruned(x, mask=scattered[:, kept], attn_bias=bias[kept]),
        zeroed(layer, removed, x, mask=scattered, attn_bias=bias),
    )
    assert_equal(pruned(x, context=context), zeroed(layer, removed, x, context=context))
    with pytest.raises(ValueError, match="mask"):
        pruned(x, mask=scattered)
    x, mask = tokens(101), masks.padding(torch.tensor([97, 61]), mask_queries=True)
    assert attnlab.explain_path(pruned, x, mask=mask)[0].name == "packed"
    assert_equal(pruned(x, mask=mask), zeroed(layer, removed, x, mask=mask))


@pytest.mark.slow
@pytest.mark.parametrize("make", [partial(multihead, positions="t5"), grouped])
def test_a_pruned_layer_passes_the_conformance_suite(make: Callable[[], Any]) -> None:
    layer = make()
    torch.manual_seed(0)  # the rounding error depends on the parameters
    check_attention(prune_heads(layer, [1, 4]), fast=True, skip=INDEPENDENT_OF_OPTIONS)


def test_the_copy_is_smaller_and_the_original_unchanged() -> None:
    layer = multihead()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    pruned = prune_heads(layer.train(), [0, 1])
    # W_Q, W_K, W_V with their biases, and W_O, for each removed head
    assert size(layer) - size(pruned) == 2 * (3 * d * (D + 1) + d * D)
    assert pruned.training
    with torch.no_grad():
        pruned.output.weight.zero_()
        pruned.output.bias.zero_()
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert (pruned.qkv.out_features, pruned.output.in_features) == (3 * 3 * d, 3 * d)
    assert "num_heads=3" in repr(pruned)
    assert "head_dim=4" in repr(pruned)


def test_pruned_layers_train_and_frozen_parameters_stay_frozen() -> None:
    layer = multihead(positions="t5")
    layer.qkv.weight.requires_grad_(False)
    pruned = prune_heads(layer, [3])
    pruned(tokens()).square().sum().backward()
    assert pruned.qkv.weight.grad is None
    assert not pruned.qkv.weight.requires_grad
    for parameter in (pruned.qkv.bias, pruned.output.weight, pruned.positions.table.weight):
        assert parameter.grad.abs().sum() > 1e-3


def test_edit_heads_edits_the_input_of_the_output_projection() -> None:
    layer, x = perturbed(registry.load("gated")(D, H)), tokens()  # its gate comes before
    before = layer(x)
    with edit_heads(layer, lambda heads: heads * torch.tensor([1.0, 0, 1, 1, 0])[:, None].double()):
        assert_equal(layer(x), zeroed(layer, [1, 4], x))
    assert torch.equal(layer(x), before)


def test_edit_heads_detects_a_bypassed_projection() -> None:
    class Around(MultiAttention):
        def _merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
            return nn.functional.linear(heads.transpose(1, 2).flatten(2), self.output.weight)

    layer = Around(D, H)
    with (
        pytest.raises(UnsupportedError, match=r"Around does not pass its heads to self\.output"),
        edit_heads(layer, torch.abs),
    ):
        layer(torch.zeros(B, N, D))
    with edit_heads(layer, torch.abs):
        pass  # not called


# A network


def network(model: str = "multihead", **options: Any) -> Network:
    torch.manual_seed(0)
    usual = {"multihead": {"num_heads": 5}, "groupedquery": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}}
    options = {**usual.get(model, {}), **options}
    inputs, outputs = Inputs("tokens", 13), Outputs("tokens", 3)
    return Network(model, inputs, outputs, N, embed_dim=D, layers=3, options=options, causal=True).eval()


def token_ids() -> Tensor:
    return torch.randint(13, (B, N), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("model", "removed"), [("multihead", {0: [1], 2: [4, 0, 2]}), ("groupedquery", {1: [2, 3], 2: [0, 3]})]
)
@torch.no_grad()
def test_a_network_is_pruned_layer_by_layer_and_saved(
    model: str, removed: dict[int, list[int]], positions: str, tmp_path: Path
) -> None:
    original, x = network(model, positions=positions).double(), token_ids()
    pruned = prune_heads(original, removed)
    for layer, heads in removed.items():
        attention = original.mechanisms()[layer]
        attention.output.weight.unflatten(1, (-1, attention.head_dim))[:, heads] = 0
    assert_equal(pruned(x), original(x))
    assert size(pruned) < size(original)
    caches = pruned.caches()
    assert caches is not None
    assert_equal(torch.cat([pruned(part, caches=caches) for part in x.split([5, 1, 5], 1)], 1), pruned(x))
    pruned.save_pretrained(tmp_path / "hub")
    save_network(tmp_path / "x.safetensors", pruned, {})
    save_network(tmp_path / "x.pth", pruned, {})
    hub = Network.from_pretrained(tmp_path / "hub").eval()
    for loaded in (hub, attnlab.load(tmp_path / "x.safetensors"), attnlab.load(tmp_path / "x.pth")):
        assert torch.equal(loaded(x), pruned(x))
        assert [layer.num_heads for layer in loaded.mechanisms()] == [layer.num_heads for layer in pruned.mechanisms()]


def test_a_twice_pruned_network_is_saved_and_loaded(tmp_path: Path) -> None:
    original, x = network(positions="alibi"), token_ids()
    save_network(tmp_path / "once.safetensors", prune_heads(original, {0: [1], 2: [0, 4]}), {})
    twice = prune_heads(load_network(tmp_path / "once.safetensors")[0], {0: [0], 1: [3], 2: [1]})
    save_network(tmp_path / "twice.safetensors", twice, {})
    loaded, about = load_network(tmp_path / "twice.safetensors")
    assert about["network"]["heads"] == {"0": [2, 3, 4], "1": [0, 1, 2, 4], "2": [1, 3]}
    assert torch.equal(loaded(x), twice(x))
    assert torch.equal(prune_heads(original, {0: [0, 1], 1: [3], 2: [0, 2, 4]})(x), twice(x))
    save_network(tmp_path / "original.safetensors", original, {})
    assert torch.equal(attnlab.load(tmp_path / "original.safetensors")(x), original(x))


def test_a_file_with_invalid_heads_is_refused(tmp_path: Path) -> None:
    pruned = prune_heads(network(), {0: [1]})
    pruned._hub_mixin_config = {**pruned._hub_mixin_config, "heads": {"7": [0]}}
    save_network(tmp_path / "x.safetensors", pruned, {})
    with pytest.raises(UserError, match="does not match the network that it describes: there is no layer 7"):
        attnlab.load(tmp_path / "x.safetensors")


# What is refused


class Parted(MultiHeadBase):
    """A sink per head and a gate, which `_select_heads` does not select, and a norm that all heads share."""

    card = MultiAttention.card

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__(embed_dim, num_heads)
        self.norm, self.sink = QKNorm(self.head_dim), nn.Parameter(torch.zeros(num_heads))
        self.gate = OutputGate(embed_dim, num_heads, self.head_dim)


def adapted() -> MultiAttention:
    layer = multihead()
    nn.utils.parametrizations.weight_norm(layer.qkv)
    return layer


@pytest.mark.parametrize(
    ("make", "heads", "error", "message"),
    [
        (multihead, [5], ValueError, "there is no head 5; there are 5, counted from 0"),
        (multihead, [-1], ValueError, "there is no head -1; there are 5, counted from 0"),
        (multihead, [1, 1], ValueError, r"a head is repeated in \[1, 1\]"),
        (multihead, range(5), ValueError, "at least one head must be kept"),
        (multihead, [1.0], TypeError, "a head must be an integer, not 1.0"),
        (multihead, [True, False], TypeError, "a head must be an integer, not True"),
        (grouped, [0], ValueError, r"heads 1, 2, 3, 4, 5 cannot be kept alone: .*0 to 2, 3 to 5\); keep the"),
        (lambda: SelfAttention(D), [0], UnsupportedError, "SelfAttention has no separate heads"),
        (lambda: Parted(D, H), [0], UnsupportedError, "Parted does not select the heads of gate, sink"),
        (adapted, [0], TypeError, "qkv is a ParametrizedLinear; merge adapters first"),
        (network, {3: [0]}, ValueError, "there is no layer 3; there are 3, counted from 0"),
        (network, {-1: [0]}, ValueError, "there is no layer -1"),
        (network, {"0": [0]}, TypeError, "a layer must be an integer, not '0'"),
        (network, {0: [5]}, ValueError, "there is no head 5"),
        (network, {0: [0], 1: range(5)}, ValueError, "at least one head must be kept"),
        (network, [0], TypeError, r"must be a dict by layer, {layer: heads}, not \[0\]"),
        (lambda: network("selfhead"), {0: [0]}, UnsupportedError, "SelfAttention has no separate heads"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    make: Callable[[], Any], heads: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune_heads(make(), heads)


def test_edits_and_conversions_that_are_impossible_are_refused() -> None:
    with (
        pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"),
        edit_heads(SelfAttention(D), torch.abs),
    ):
        pass
    with pytest.raises(ValueError, match=r"embed_dim \(20\), and this layer has 3 heads of width 4"):
        prune_heads(multihead(), [0, 1]).to_torch()
