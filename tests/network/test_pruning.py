"""A pruned layer matches the original with the outputs of those heads set to zero; pruned networks are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from attnlab.ops.softmax import SoftmaxMap
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


# A layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("removed", [[], [0], [1, 3], [4, 0, 2, 1]])
def test_pruned_heads_contribute_zero(removed: list[int], positions: Any, bias: bool, causal: bool) -> None:
    layer, x = multihead(positions=positions, bias=bias, causal=causal), tokens()
    pruned = prune_heads(layer, removed)
    assert_equal(pruned(x), zeroed(layer, removed, x))
    kept = [head for head in range(H) if head not in removed]
    assert (pruned.num_heads, pruned.head_dim) == (len(kept), d)
    assert_equal(pruned.attention_weights(x), layer.attention_weights(x)[:, kept])
    assert_equal(pruned.apply_weights(pruned.attention_weights(x), x), pruned(x))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("kv", "removed", "kept"),
    [(2, [3, 4, 5], (3, 1)), (2, [0, 4], (4, 2)), (2, [1, 2, 3, 5], (2, 2)), (1, [0, 4], (4, 1)), (6, [0, 4], (4, 4))],
)
def test_groups_of_shared_keys_are_pruned_evenly(kv: int, removed: list[int], kept: tuple, positions: Any) -> None:
    layer, x = grouped(num_kv_heads=kv, positions=positions), tokens()
    pruned = prune_heads(layer, removed)
    assert (pruned.num_heads, pruned.num_kv_heads) == kept
    assert_equal(pruned(x), zeroed(layer, removed, x))
    assert_equal(
        pruned.attention_weights(x), layer.attention_weights(x)[:, [head for head in range(6) if head not in removed]]
    )


@given(removed=st.sets(st.integers(0, 5), max_size=5), kv=st.sampled_from([1, 2, 3, 6]))
def test_any_valid_pruning_matches_zeroed_heads(removed: set[int], kv: int) -> None:
    layer, x, size = grouped(num_kv_heads=kv, positions="t5"), tokens(), 6 // kv
    kept = {sum(head not in removed for head in range(g * size, (g + 1) * size)) for g in range(kv)} - {0}
    if len(kept) > 1:
        with pytest.raises(ValueError, match="cannot be kept alone"):
            prune_heads(layer, removed)
    else:
        assert_equal(prune_heads(layer, removed)(x), zeroed(layer, list(removed), x))


def test_pruning_twice_uses_the_new_indices() -> None:
    layer, x = multihead(positions="alibi"), tokens()
    assert_equal(prune_heads(prune_heads(layer, [0, 2]), [1])(x), prune_heads(layer, [0, 2, 3])(x))
    assert_equal(layer.keep_heads([4, 1])(x), prune_heads(layer, [0, 2, 3])(x))


def test_positions_keep_the_parameters_of_the_kept_heads() -> None:
    layer: Any = multihead(positions="alibi")
    slopes = layer.positions.slopes
    assert prune_heads(layer, [0, 3]).positions.slopes == (slopes[1], slopes[2], slopes[4])
    layer = multihead(positions="t5")
    table = prune_heads(layer, [0]).positions.table
    assert torch.equal(table.weight, layer.positions.table.weight[:, 1:])
    assert table.embedding_dim == H - 1


def test_pruned_layers_take_masks_biases_and_context() -> None:
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


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("make", [multihead, grouped])
@torch.no_grad()
def test_pruned_layers_decode_with_a_cache(make: Any, positions: str) -> None:
    pruned, x = prune_heads(make(causal=True, positions=positions), [0, 3]), tokens()
    cache = KVCache(N)
    assert_equal(torch.cat([pruned(part, cache=cache) for part in x.split([5, 1, 2, 3], 1)], 1), pruned(x))


def test_pruned_layers_pack_padded_batches() -> None:
    layer, x = multihead(), tokens(101)
    lengths = torch.tensor([97, 61])
    mask = masks.padding(lengths, mask_queries=True)
    pruned = prune_heads(layer, [2])
    with torch.no_grad():
        assert attnlab.explain_path(pruned, x, mask=mask)[0].name == "packed"
        assert_equal(pruned(x, mask=mask), zeroed(layer, [2], x, mask=mask))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "positions"), [(multihead, "alibi"), (multihead, "t5"), (grouped, "none"), (grouped, "rotary")]
)
def test_a_pruned_layer_passes_the_conformance_suite(make: Any, positions: str) -> None:
    # the reference of grouped queries has no positions
    reference_checks = ("matches_reference_outputs", "matches_reference_gradients")
    skip = reference_checks if make is grouped and positions != "none" else ()
    torch.manual_seed(0)  # the rounding error depends on the parameters
    check_attention(prune_heads(make(positions=positions), [1, 4]), fast=True, skip=skip)


def test_the_copy_is_smaller_and_the_original_unchanged() -> None:
    layer = multihead()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    pruned = prune_heads(layer.train(), [0, 1])
    # W_Q, W_K, W_V with their biases, and W_O, for each removed head
    assert size(layer) - size(pruned) == 2 * (3 * d * (D + 1) + d * D)
    assert pruned.training
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    with torch.no_grad():
        pruned.output.weight.zero_()
        pruned.output.bias.zero_()
    assert layer.output.weight.any()
    assert layer.output.bias.any()
    assert (pruned.qkv.out_features, pruned.output.in_features) == (3 * 3 * d, 3 * d)
    assert "num_heads=3" in repr(pruned)
    assert "head_dim=4" in repr(pruned)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_pruned_layers_train_and_frozen_parameters_stay_frozen() -> None:
    layer = multihead(positions="t5")
    layer.qkv.weight.requires_grad_(False)
    pruned = prune_heads(layer, [3])
    pruned(tokens()).square().sum().backward()
    assert pruned.qkv.weight.grad is None
    assert not pruned.qkv.weight.requires_grad
    for parameter in (pruned.qkv.bias, pruned.output.weight, pruned.positions.table.weight):
        assert parameter.grad.abs().sum() > 1e-3


def test_a_pruned_layer_cannot_be_converted_to_torch() -> None:
    with pytest.raises(ValueError, match=r"embed_dim \(20\), and this layer has 3 heads of width 4"):
        prune_heads(multihead(), [0, 1]).to_torch()


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ([5], ValueError, "there is no head 5; there are 5, counted from 0"),
        ([-1], ValueError, "there is no head -1; there are 5, counted from 0"),
        ([1, 1], ValueError, r"a head is repeated in \[1, 1\]"),
        (range(5), ValueError, "at least one head must be kept"),
        ([1.0], TypeError, "a head must be an integer, not 1.0"),
        ([True, False], TypeError, "a head must be an integer, not True"),
    ],
)
def test_invalid_head_indices_are_refused(heads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune_heads(multihead(), heads)


def test_uneven_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads 1, 2, 3, 4, 5 cannot be kept alone: .*0 to 2, 3 to 5\); keep the"):
        prune_heads(grouped(), [0])


def test_a_mechanism_without_heads_is_refused() -> None:
    for call in (lambda layer: prune_heads(layer, [0]), lambda layer: edit_heads(layer, lambda x: x).__enter__()):
        with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
            call(SelfAttention(D))


def test_an_adapted_projection_is_refused() -> None:
    layer = multihead()
    nn.utils.parametrizations.weight_norm(layer.qkv)
    with pytest.raises(TypeError, match="qkv is a ParametrizedLinear; merge adapters first"):
        prune_heads(layer, [0])


# A mechanism with further parameters per head


class Parted(MultiHeadBase):
    """Normalized queries and keys, a sink per head, a gate on the heads."""

    card = MultiAttention.card

    def __init__(self, embed_dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.norm = QKNorm(self.head_dim)
        self.sink = nn.Parameter(torch.zeros(num_heads))
        self.gate = OutputGate(embed_dim, num_heads, self.head_dim)

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return *self.norm(Q, K), V

    def _attention_map(self, Q: Tensor, K: Tensor, mask: Any, bias: Tensor | None) -> SoftmaxMap:
        return SoftmaxMap(Q, K, mask, bias, sink=self.sink)

    def _merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return super()._merge_heads(self.gate(heads, x), x)


class Selecting(Parted):
    """Also selects the sinks and gates of the kept heads."""

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.sink = nn.Parameter(self.sink[heads])
        self.gate.keep_heads(heads)


def test_parameters_per_head_are_pruned_with_the_heads() -> None:
    layer, x = perturbed(Selecting(D, H)), tokens()
    assert_equal(prune_heads(layer, [0, 2])(x), zeroed(layer, [0, 2], x))


def test_unselected_parameters_per_head_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Parted does not select the heads of gate, sink"):
        prune_heads(perturbed(Parted(D, H)), [0])


# edit_heads


def test_edit_heads_edits_the_input_of_the_output_projection() -> None:
    layer, x = perturbed(Selecting(D, H)), tokens()
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
    kind = {"multihead": {"num_heads": 5}, "groupedquery": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}}.get(
        model, {}
    )
    width = 20
    return Network(
        model,
        Inputs("tokens", 13),
        Outputs("tokens", 3),
        N,
        embed_dim=width,
        layers=3,
        options={**kind, **options},
        causal=True,
    ).eval()


def token_ids() -> Tensor:
    return torch.randint(13, (B, N), generator=torch.Generator().manual_seed(0))


PRUNED: dict[str, dict[int, list[int]]] = {"multihead": {0: [1], 2: [4, 0, 2]}, "groupedquery": {1: [2, 3], 2: [0, 3]}}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model", PRUNED)
@torch.no_grad()
def test_a_network_is_pruned_layer_by_layer(model: str, positions: str) -> None:
    original = network(model, positions=positions).double()
    pruned = prune_heads(original, PRUNED[model])
    for layer, heads in PRUNED[model].items():
        weight = original.mechanisms()[layer].output.weight
        weight.unflatten(1, (-1, original.mechanisms()[layer].head_dim))[:, heads] = 0
    assert_equal(pruned(token_ids()), original(token_ids()))
    assert size(pruned) < size(original)
    caches = pruned.caches()
    assert caches is not None
    assert_equal(
        torch.cat([pruned(part, caches=caches) for part in token_ids().split([5, 1, 5], 1)], 1), pruned(token_ids())
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model", PRUNED)
def test_a_pruned_network_is_saved_and_loaded(model: str, positions: str, tmp_path: Path) -> None:
    pruned = prune_heads(network(model, positions=positions), PRUNED[model])
    pruned.save_pretrained(tmp_path / "hub")
    save_network(tmp_path / "x.safetensors", pruned, {})
    save_network(tmp_path / "x.pth", pruned, {})
    for loaded in (
        Network.from_pretrained(tmp_path / "hub").eval(),
        attnlab.load(tmp_path / "x.safetensors"),
        attnlab.load(tmp_path / "x.pth"),
    ):
        assert torch.equal(loaded(token_ids()), pruned(token_ids()))
        assert [layer.num_heads for layer in loaded.mechanisms()] == [layer.num_heads for layer in pruned.mechanisms()]


def test_a_twice_pruned_network_is_saved_and_loaded(tmp_path: Path) -> None:
    once = prune_heads(network(positions="alibi"), {0: [1], 2: [0, 4]})
    save_network(tmp_path / "once.safetensors", once, {})
    twice = prune_heads(load_network(tmp_path / "once.safetensors")[0], {0: [0], 1: [3], 2: [1]})
    save_network(tmp_path / "twice.safetensors", twice, {})
    loaded, about = load_network(tmp_path / "twice.safetensors")
    assert about["network"]["heads"] == {"0": [2, 3, 4], "1": [0, 1, 2, 4], "2": [1, 3]}
    assert torch.equal(loaded(token_ids()), twice(token_ids()))
    assert torch.equal(
        prune_heads(network(positions="alibi"), {0: [0, 1], 1: [3], 2: [0, 2, 4]})(token_ids()), twice(token_ids())
    )


def test_the_original_network_is_saved_unpruned(tmp_path: Path) -> None:
    original = network()
    prune_heads(original, {1: [0]})
    save_network(tmp_path / "x.safetensors", original, {})
    assert torch.equal(attnlab.load(tmp_path / "x.safetensors")(token_ids()), original(token_ids()))


def test_a_pruned_network_trains() -> None:
    pruned = prune_heads(network(), {0: [1], 1: [2, 3]}).train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    before = [p.clone() for p in pruned.parameters()]
    pruned(token_ids()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, pruned.parameters(), strict=True) if a.dim() == 2)


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ({3: [0]}, ValueError, "there is no layer 3; there are 3, counted from 0"),
        ({-1: [0]}, ValueError, "there is no layer -1"),
        ({"0": [0]}, TypeError, "a layer must be an integer, not '0'"),
        ({0: [5]}, ValueError, "there is no head 5"),
        ({0: [0], 1: range(5)}, ValueError, "at least one head must be kept"),
        ([0], TypeError, r"must be a dict by layer, {layer: heads}, not \[0\]"),
    ],
)
def test_invalid_layers_and_heads_are_refused(heads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune_heads(network(), heads)


def test_a_network_without_separate_heads_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
        prune_heads(network("selfhead"), {0: [0]})


def test_a_file_with_invalid_heads_is_refused(tmp_path: Path) -> None:
    pruned = prune_heads(network(), {0: [1]})
    pruned._hub_mixin_config = {**pruned._hub_mixin_config, "heads": {"7": [0]}}
    save_network(tmp_path / "x.safetensors", pruned, {})
    with pytest.raises(UserError, match="does not match the network that it describes: there is no layer 7"):
        attnlab.load(tmp_path / "x.safetensors")


def eye(layer: MultiHeadBase) -> Tensor:
    return torch.eye(layer.num_heads, dtype=torch.float64)


def test_every_mechanism_with_heads_can_be_pruned() -> None:
    tested = []
    for name in registry.names():
        mechanism = registry.load(name)
        if issubclass(mechanism, MultiHeadBase):
            layer, x = perturbed(mechanism(embed_dim=32, num_heads=8)), tokens(width=32)
            if name == "talkingheads":  # without mixing, because other heads depend on each head
                layer.load_state_dict({**layer.state_dict(), **dict.fromkeys(("scores", "mixture"), eye(layer))})
            shared = layer.num_kv_heads == 1  # then any head; otherwise all heads of the first key head
            removed = [0] if shared else list(range(layer.num_heads // layer.num_kv_heads))
            assert_equal(prune_heads(layer, removed)(x), zeroed(layer, removed, x))
            tested.append(name)
    assert {"multihead", "groupedquery"} <= set(tested)
