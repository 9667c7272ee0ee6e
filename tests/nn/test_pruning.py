"""A pruned layer gives what the whole one gives with those heads silent, exactly; a pruned network can be kept."""

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
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.multihead import MultiHeadBase, OutputGate, QKNorm
from attnlab.nn.pruning import edit_heads, prune_heads
from attnlab.ops.softmax import SoftmaxMap
from attnlab.training.network_file import load_network, save_network
from attnlab.utils.errors import UserError

B, N, M, D, H, d = 2, 11, 7, 20, 5, 4
POSITIONS = ("none", "rotary", "alibi", "t5")


def moved(layer: MultiHeadBase) -> Any:
    """In float64, its parameters off where they start: a bias of zero would hide a mistake."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def multihead(**options: Any) -> MultiAttention:
    return moved(MultiAttention(D, H, **options))


def grouped(**options: Any) -> GroupedQueryAttention:
    """Six heads of 6 in a width of 20: three read each of two heads of keys."""
    return moved(GroupedQueryAttention(D, 6, **{"num_kv_heads": 2, "head_dim": 6, **options}))


def tokens(length: int = N, width: int = D) -> Tensor:
    return torch.randn(B, length, width, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def silenced(layer: MultiHeadBase, heads: list[int], x: Tensor, **given: Any) -> Tensor:
    """The truth: the columns of W_O that these heads are read by, set to zero for a moment."""
    weight = layer.output.weight
    was = weight.detach().clone()
    with torch.no_grad():
        weight.unflatten(1, (layer.num_heads, layer.head_dim))[:, heads] = 0
        out = layer(x, **given)
        weight.copy_(was)
    return out


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# A layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("gone", [[], [0], [1, 3], [4, 0, 2, 1]])
def test_heads_that_go_are_heads_that_say_nothing(gone: list[int], positions: Any, bias: bool, causal: bool) -> None:
    layer, x = multihead(positions=positions, bias=bias, causal=causal), tokens()
    small = prune_heads(layer, gone)
    same(small(x), silenced(layer, gone, x))
    left = [head for head in range(H) if head not in gone]
    assert (small.num_heads, small.head_dim) == (len(left), d)
    same(small.attention_weights(x), layer.attention_weights(x)[:, left])
    same(small.apply_weights(small.attention_weights(x), x), small(x))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("kv", "gone", "left"),
    [(2, [3, 4, 5], (3, 1)), (2, [0, 4], (4, 2)), (2, [1, 2, 3, 5], (2, 2)), (1, [0, 4], (4, 1)), (6, [0, 4], (4, 4))],
)
def test_groups_go_whole_or_alike(kv: int, gone: list[int], left: tuple[int, int], positions: Any) -> None:
    layer, x = grouped(num_kv_heads=kv, positions=positions), tokens()
    small = prune_heads(layer, gone)
    assert (small.num_heads, small.num_kv_heads) == left
    same(small(x), silenced(layer, gone, x))
    same(small.attention_weights(x), layer.attention_weights(x)[:, [head for head in range(6) if head not in gone]])


@given(gone=st.sets(st.integers(0, 5), max_size=5), kv=st.sampled_from([1, 2, 3, 6]))
def test_whatever_can_go_changes_nothing_else(gone: set[int], kv: int) -> None:
    layer, x, size = grouped(num_kv_heads=kv, positions="t5"), tokens(), 6 // kv
    left = {sum(head not in gone for head in range(g * size, (g + 1) * size)) for g in range(kv)} - {0}
    if len(left) > 1:
        with pytest.raises(ValueError, match="cannot be kept alone"):
            prune_heads(layer, gone)
    else:
        same(prune_heads(layer, gone)(x), silenced(layer, list(gone), x))


def test_pruning_twice_counts_the_heads_as_they_are_then() -> None:
    layer, x = multihead(positions="alibi"), tokens()
    same(prune_heads(prune_heads(layer, [0, 2]), [1])(x), prune_heads(layer, [0, 2, 3])(x))
    same(layer.keep_heads([4, 1])(x), prune_heads(layer, [0, 2, 3])(x))


def test_slopes_and_columns_stay_with_their_heads() -> None:
    layer: Any = multihead(positions="alibi")
    slopes = layer.positions.slopes
    assert prune_heads(layer, [0, 3]).positions.slopes == (slopes[1], slopes[2], slopes[4])
    layer = multihead(positions="t5")
    table = prune_heads(layer, [0]).positions.table
    assert torch.equal(table.weight, layer.positions.table.weight[:, 1:])
    assert table.embedding_dim == H - 1


def test_masks_biases_and_context_are_taken_as_before() -> None:
    layer, gone, left = multihead(), [1, 2], [0, 3, 4]
    small, x, context = prune_heads(layer, gone), tokens(), tokens(M)
    mask = masks.padding(torch.tensor([5, 11]), mask_queries=True) & masks.sliding_window(3)
    same(small(x, mask=mask), silenced(layer, gone, x, mask=mask))
    scattered = torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(0)) < 0.8
    bias = torch.randn(H, N, N, dtype=torch.float64)
    same(
        small(x, mask=scattered[:, left], attn_bias=bias[left]),
        silenced(layer, gone, x, mask=scattered, attn_bias=bias),
    )
    same(small(x, context=context), silenced(layer, gone, x, context=context))
    with pytest.raises(ValueError, match="mask"):
        small(x, mask=scattered)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("make", [multihead, grouped])
@torch.no_grad()
def test_a_cache_reads_on_where_it_stopped(make: Any, positions: str) -> None:
    small, x = prune_heads(make(causal=True, positions=positions), [0, 3]), tokens()
    cache = KVCache(N)
    same(torch.cat([small(part, cache=cache) for part in x.split([5, 1, 2, 3], 1)], 1), small(x))


def test_a_packed_batch_is_each_of_its_items() -> None:
    layer, x = multihead(), tokens(101)
    lengths = torch.tensor([97, 61])
    mask = masks.padding(lengths, mask_queries=True)
    small = prune_heads(layer, [2])
    with torch.no_grad():
        assert attnlab.explain_path(small, x, mask=mask)[0].name == "packed"
        same(small(x, mask=mask), silenced(layer, [2], x, mask=mask))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("make", [multihead, grouped])
def test_a_pruned_layer_keeps_its_promises(make: Any, positions: str) -> None:
    # the reference of grouped queries, in plain lines, knows no positions
    plain = ("matches_reference_outputs", "matches_reference_gradients")
    skip = plain if make is grouped and positions != "none" else ()
    torch.manual_seed(0)  # the roundoff depends on the weights
    check_attention(prune_heads(make(positions=positions), [1, 4]), fast=True, skip=skip)


def test_it_is_smaller_and_the_whole_one_is_left_as_it_was() -> None:
    layer = multihead()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    small = prune_heads(layer.train(), [0, 1])
    # W_Q, W_K, W_V with their biases, and W_O, for each head that went
    assert size(layer) - size(small) == 2 * (3 * d * (D + 1) + d * D)
    assert small.training
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    with torch.no_grad():
        small.output.weight.zero_()
        small.output.bias.zero_()
    assert layer.output.weight.any()
    assert layer.output.bias.any()
    assert (small.qkv.out_features, small.output.in_features) == (3 * 3 * d, 3 * d)
    assert "num_heads=3" in repr(small)
    assert "head_dim=4" in repr(small)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_it_learns_and_what_was_frozen_stays_so() -> None:
    layer = multihead(positions="t5")
    layer.qkv.weight.requires_grad_(False)
    small = prune_heads(layer, [3])
    small(tokens()).square().sum().backward()
    assert small.qkv.weight.grad is None
    assert not small.qkv.weight.requires_grad
    for parameter in (small.qkv.bias, small.output.weight, small.positions.table.weight):
        assert parameter.grad.abs().sum() > 1e-3


def test_a_pruned_layer_has_no_torch_twin() -> None:
    with pytest.raises(ValueError, match=r"embed_dim \(20\), and this layer has 3 heads of width 4"):
        prune_heads(multihead(), [0, 1]).to_torch()


@pytest.mark.parametrize(
    ("heads", "error", "says"),
    [
        ([5], ValueError, "there is no head 5; there are 5, counted from 0"),
        ([-1], ValueError, "there is no head -1; there are 5, counted from 0"),
        ([1, 1], ValueError, r"a head is repeated in \[1, 1\]"),
        (range(5), ValueError, "at least one head must be kept"),
        ([1.0], TypeError, "a head must be an integer, not 1.0"),
        ([True, False], TypeError, "a head must be an integer, not True"),
    ],
)
def test_heads_that_cannot_go(heads: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        prune_heads(multihead(), heads)


def test_groups_that_cannot_go_say_what_can() -> None:
    with pytest.raises(ValueError, match=r"heads 1, 2, 3, 4, 5 cannot be kept alone: .*0 to 2, 3 to 5\); keep the"):
        prune_heads(grouped(), [0])


def test_a_mechanism_without_heads_is_refused() -> None:
    for ask in (lambda layer: prune_heads(layer, [0]), lambda layer: edit_heads(layer, lambda x: x).__enter__()):
        with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
            ask(SelfAttention(D))


def test_what_was_added_to_a_projection_is_not_lost() -> None:
    layer = multihead()
    nn.utils.parametrizations.weight_norm(layer.qkv)
    with pytest.raises(TypeError, match="qkv is a ParametrizedLinear; merge adapters first"):
        prune_heads(layer, [0])


# A mechanism with parts of its own


class Parted(MultiHeadBase):
    """Queries and keys of one length, a sink a head, a gate on the output."""

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


class Narrowing(Parted):
    """One that says what is left of them."""

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.sink = nn.Parameter(self.sink[heads])
        self.gate.keep_heads(heads)


def test_parts_a_head_go_with_their_heads() -> None:
    layer, x = moved(Narrowing(D, H)), tokens()
    same(prune_heads(layer, [0, 2])(x), silenced(layer, [0, 2], x))


def test_parts_that_nobody_narrows_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Parted does not select the heads of gate, sink"):
        prune_heads(moved(Parted(D, H)), [0])


# Heads edited


def test_an_edit_stands_between_the_heads_and_their_output() -> None:
    layer, x = moved(Narrowing(D, H)), tokens()
    before = layer(x)
    with edit_heads(layer, lambda heads: heads * torch.tensor([1.0, 0, 1, 1, 0])[:, None].double()):
        same(layer(x), silenced(layer, [1, 4], x))
    assert torch.equal(layer(x), before)


def test_an_edit_that_is_gone_past_is_found_out() -> None:
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
        pass  # it was not asked


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


def words() -> Tensor:
    return torch.randint(13, (B, N), generator=torch.Generator().manual_seed(0))


PRUNED: dict[str, dict[int, list[int]]] = {"multihead": {0: [1], 2: [4, 0, 2]}, "groupedquery": {1: [2, 3], 2: [0, 3]}}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model", PRUNED)
@torch.no_grad()
def test_a_network_is_pruned_layer_by_layer(model: str, positions: str) -> None:
    whole = network(model, positions=positions).double()
    small = prune_heads(whole, PRUNED[model])
    for layer, heads in PRUNED[model].items():
        weight = whole.mechanisms()[layer].output.weight
        weight.unflatten(1, (-1, whole.mechanisms()[layer].head_dim))[:, heads] = 0
    same(small(words()), whole(words()))
    assert size(small) < size(whole)
    caches = small.caches()
    assert caches is not None
    same(torch.cat([small(part, caches=caches) for part in words().split([5, 1, 5], 1)], 1), small(words()))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model", PRUNED)
def test_a_pruned_network_comes_back_from_disk_as_it_went(model: str, positions: str, tmp_path: Path) -> None:
    small = prune_heads(network(model, positions=positions), PRUNED[model])
    small.save_pretrained(tmp_path / "hub")
    save_network(tmp_path / "x.safetensors", small, {})
    save_network(tmp_path / "x.pth", small, {})
    for back in (
        Network.from_pretrained(tmp_path / "hub").eval(),
        attnlab.load(tmp_path / "x.safetensors"),
        attnlab.load(tmp_path / "x.pth"),
    ):
        assert torch.equal(back(words()), small(words()))
        assert [layer.num_heads for layer in back.mechanisms()] == [layer.num_heads for layer in small.mechanisms()]


def test_what_was_pruned_twice_comes_back_too(tmp_path: Path) -> None:
    once = prune_heads(network(positions="alibi"), {0: [1], 2: [0, 4]})
    save_network(tmp_path / "once.safetensors", once, {})
    twice = prune_heads(load_network(tmp_path / "once.safetensors")[0], {0: [0], 1: [3], 2: [1]})
    save_network(tmp_path / "twice.safetensors", twice, {})
    back, about = load_network(tmp_path / "twice.safetensors")
    assert about["network"]["heads"] == {"0": [2, 3, 4], "1": [0, 1, 2, 4], "2": [1, 3]}
    assert torch.equal(back(words()), twice(words()))
    assert torch.equal(
        prune_heads(network(positions="alibi"), {0: [0, 1], 1: [3], 2: [0, 2, 4]})(words()), twice(words())
    )


def test_the_whole_network_is_saved_whole(tmp_path: Path) -> None:
    whole = network()
    prune_heads(whole, {1: [0]})
    save_network(tmp_path / "x.safetensors", whole, {})
    assert torch.equal(attnlab.load(tmp_path / "x.safetensors")(words()), whole(words()))


def test_a_pruned_network_is_trained_on() -> None:
    small = prune_heads(network(), {0: [1], 1: [2, 3]}).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.clone() for p in small.parameters()]
    small(words()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True) if a.dim() == 2)


@pytest.mark.parametrize(
    ("heads", "error", "says"),
    [
        ({3: [0]}, ValueError, "there is no layer 3; there are 3, counted from 0"),
        ({-1: [0]}, ValueError, "there is no layer -1"),
        ({"0": [0]}, TypeError, "a layer must be an integer, not '0'"),
        ({0: [5]}, ValueError, "there is no head 5"),
        ({0: [0], 1: range(5)}, ValueError, "at least one head must be kept"),
        ([0], TypeError, r"must be a dict by layer, {layer: heads}, not \[0\]"),
    ],
)
def test_heads_of_a_network_that_cannot_go(heads: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        prune_heads(network(), heads)


def test_a_network_without_heads_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
        prune_heads(network("selfhead"), {0: [0]})


def test_a_file_that_names_heads_which_are_not_there_is_refused(tmp_path: Path) -> None:
    small = prune_heads(network(), {0: [1]})
    small._hub_mixin_config = {**small._hub_mixin_config, "heads": {"7": [0]}}
    save_network(tmp_path / "x.safetensors", small, {})
    with pytest.raises(UserError, match="does not match the network that it describes: there is no layer 7"):
        attnlab.load(tmp_path / "x.safetensors")


def eye(layer: MultiHeadBase) -> Tensor:
    return torch.eye(layer.num_heads, dtype=torch.float64)


def test_every_mechanism_with_heads_can_be_pruned() -> None:
    found = []
    for name in registry.names():
        mechanism = registry.load(name)
        if issubclass(mechanism, MultiHeadBase):
            layer, x = moved(mechanism(embed_dim=32, num_heads=8)), tokens(width=32)
            if name == "talkingheads":  # a head that others hear cannot go
                layer.load_state_dict({**layer.state_dict(), **dict.fromkeys(("scores", "mixture"), eye(layer))})
            shared = layer.num_kv_heads == 1  # then any can go; else the first head of keys with all that read it
            gone = [0] if shared else list(range(layer.num_heads // layer.num_kv_heads))
            same(prune_heads(layer, gone)(x), silenced(layer, gone, x))
            found.append(name)
    assert {"multihead", "groupedquery"} <= set(found)
