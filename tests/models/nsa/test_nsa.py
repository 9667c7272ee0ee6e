"""Native sparse attention: the worked example, a loop over queries, its limits, and decoding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, assert_same_gradients, perturbed, random
from torch import Tensor

from attnlab import masks
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.nsa import NativeSparseAttention
from attnlab.models.slidingwindow import SlidingWindowAttention
from attnlab.nn.attention import UnsupportedError
from attnlab.ops import selection

B, N, H, D, d = 2, 29, 6, 18, 3
SIZES = {"num_kv_heads": 2, "compress_block": 4, "compress_stride": 2, "select_block": 2, "num_selected": 4}


def made(**options: Any) -> NativeSparseAttention:
    torch.manual_seed(0)
    return perturbed(NativeSparseAttention(D, H, **{**SIZES, "window_size": 3, **options}))


def open_gate(layer: NativeSparseAttention, branch: int) -> NativeSparseAttention:
    """The layer with this gate at 1 and the others at 0."""
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.bias.fill_(-1e3)
        layer.gate.bias.unflatten(0, (3, H))[branch] = 1e3
    return layer


def three_tokens(*gates: float) -> list[float]:
    """The worked example: scores 2 j ln 2, blocks of two tokens, a window of one."""
    sizes = {"compress_block": 2, "compress_stride": 1, "select_block": 1, "num_selected": 3, "window_size": 1}
    layer = NativeSparseAttention(4, 1, **sizes)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.gate.weight.zero_()
        layer.gate.bias.copy_(torch.tensor(gates))
        W_Q, W_K, W_V = layer.qkv.weight.split(4)
        W_Q[0, 2], W_K[0, 0], W_V[0, 1] = 4 * math.log(2), 1, 1
        layer.output.weight.copy_(torch.eye(4))
        return layer(torch.tensor([[[0.0, 21, 1, 0], [1, 42, 1, 0], [2, 63, 1, 0]]]))[0, :, 0].tolist()


def test_the_worked_example() -> None:
    assert three_tokens(99, -99, -99) == pytest.approx([0, 31.5, 48.3])
    assert three_tokens(-99, 99, -99) == pytest.approx([21, 37.8, 57])
    assert three_tokens(-99, -99, 99) == pytest.approx([21, 42, 63])
    assert three_tokens(0, 0, 0) == pytest.approx([21, 55.65, 84.15])


MASKS = {
    "none": None,
    "right padding": masks.padding(torch.tensor([N, 13])),
    "left padding": masks.padding(torch.tensor([N, 13]), side="left", max_length=N),
    "documents": masks.documents(torch.tensor([0] * 11 + [1] * (N - 11))),
}


@pytest.mark.parametrize("name", MASKS)
@torch.no_grad()
def test_a_loop_over_queries(name: str) -> None:
    layer, x, mask = made(), random(B, N, D), MASKS[name]
    allowed = torch.ones(B, 1, N, N, dtype=torch.bool) if mask is None else mask.materialize(N).expand(B, 1, N, N)
    allowed = allowed.tril()[:, 0]
    expected = torch.zeros(B, N, H, d, dtype=torch.float64)
    gates = torch.sigmoid(layer.gate(x)).unflatten(-1, (3, H))

    def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
        if not keys:
            return torch.zeros(d, dtype=torch.float64), torch.zeros(0)
        weights = (torch.stack(keys) @ q / d**0.5).softmax(0)
        return weights @ torch.stack(values), weights

    for b in range(B):
        Q, K, V = (part.unflatten(-1, (-1, d)) for part in layer.qkv(x[b]).split([H * d, 2 * d, 2 * d], -1))
        for t in range(N):
            keys = [j for j in range(N) if allowed[b, t, j]]
            complete = [a for a in range(0, N - 3, 2) if all(j in keys for j in range(a, a + 4))]
            for g in range(2):
                pooled = [
                    (layer.key_pool[g] @ K[a : a + 4, g], layer.value_pool[g] @ V[a : a + 4, g]) for a in complete
                ]
                importance, outs = dict.fromkeys({j // 2 for j in keys}, 0.0), {}
                for h in range(3 * g, 3 * g + 3):
                    outs[h], weights = attend(Q[t, h], [k for k, _ in pooled], [v for _, v in pooled])
                    for a, weight in zip(complete, weights.tolist(), strict=True):
                        importance[a // 2] += weight  # each compressed block covers two blocks
                        importance[a // 2 + 1] += weight
                for block in (0, t // 2 - 1, t // 2):
                    if block in importance:
                        importance[block] = math.inf
                chosen = sorted(importance, key=lambda j: (-importance[j], j))[:4]
                for h in range(3 * g, 3 * g + 3):
                    picked = [j for j in keys if j // 2 in chosen]
                    near = [j for j in keys if t - j < 3]
                    for branch, out in enumerate(
                        [outs[h], *(attend(Q[t, h], [*K[js, g]], [*V[js, g]])[0] for js in (picked, near))]
                    ):
                        expected[b, t, h] += gates[b, t, branch, h] * out
    out = layer.output(expected.flatten(2)).masked_fill(~allowed.any(-1, keepdim=True), 0)
    assert_same(layer(x, mask=mask), out)


def same_parameters(layer: NativeSparseAttention, other: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
    other = other.double()
    other.load_state_dict({name: p for name, p in layer.state_dict().items() if name in dict(other.named_parameters())})
    names = [name for name, _ in other.named_parameters()]
    return other, [layer.get_parameter(name) for name in names], [other.get_parameter(name) for name in names]


def test_with_all_blocks_selected_and_the_other_gates_closed_it_is_grouped_query_attention() -> None:
    layer, x = open_gate(made(num_selected=15), 1), random(B, N, D).requires_grad_()
    full, ours, theirs = same_parameters(layer, GroupedQueryAttention(D, H, num_kv_heads=2, causal=True))
    assert_same_gradients((layer(x), [x, *ours]), (full(x), [x, *theirs]), 1e-12)
    fewer = open_gate(made(num_selected=14), 1)
    assert (fewer(x) - full(x)).abs().max() > 1e-3


def test_with_the_gate_of_the_window_alone_it_is_sliding_window_attention() -> None:
    layer, x = open_gate(made(num_kv_heads=H), 2), random(B, N, D).requires_grad_()
    window, ours, theirs = same_parameters(layer, SlidingWindowAttention(D, H, window_size=3, causal=True))
    assert_same_gradients((layer(x), [x, *ours]), (window(x), [x, *theirs]), 1e-12)


def test_blocks_of_one_token_compress_nothing() -> None:
    sizes = {"compress_block": 1, "compress_stride": 1, "select_block": 1}
    torch.manual_seed(0)
    layer = NativeSparseAttention(D, H, num_kv_heads=2, **sizes).double()  # type: ignore[arg-type]
    x = random(B, N, D)
    full, _, _ = same_parameters(open_gate(layer, 0), GroupedQueryAttention(D, H, num_kv_heads=2, causal=True))
    assert_same(layer(x), full(x))


def test_heads_of_a_group_select_the_same_blocks() -> None:
    layer, x = open_gate(made(), 1), random(B, N, D)
    used = layer.attention_weights(x) > 0
    for g in range(2):
        assert torch.equal(used[:, 3 * g : 3 * g + 3], used[:, 3 * g, None].expand(-1, 3, -1, -1))
    assert not torch.equal(used[:, 0], used[:, 3])
    blocks = torch.nn.functional.pad(used, (0, 1)).unflatten(-1, (-1, 2)).any(-1)
    assert torch.equal(blocks.sum(-1)[0, 0], (torch.arange(N) // 2 + 1).clamp(max=4))
    own = torch.arange(N) // 2
    assert blocks[..., 0].all()
    assert blocks[..., torch.arange(N), own].all()
    assert blocks[..., torch.arange(N), (own - 1).clamp(min=0)].all()


@pytest.mark.parametrize("positions", ["none", "rotary"])
@torch.no_grad()
def test_decoding_gathers_the_selected_blocks(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "DECODING_GATHER_RATIO", 2)
    torch.manual_seed(0)
    layer = perturbed(NativeSparseAttention(24, H, **{**SIZES, "positions": positions}))  # type: ignore[arg-type]
    x, sizes, gathered = random(B, N, 24), [], selection.gathered
    monkeypatch.setattr(selection, "gathered", lambda *args: sizes.append(args[3].shape[-1]) or gathered(*args))
    cache = layer.make_cache(N)
    steps = [layer(part, cache=cache) for part in x.split([5, 12, *[1] * 12], 1)]
    assert sizes == [8] * 12
    sizes.clear()
    assert_same(torch.cat(steps, 1), layer(x))
    assert sizes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 4}, r"num_kv_heads \(4\) must divide num_heads \(6\); try num_kv_heads=2, 3 or 6"),
        ({"compress_stride": 3}, r"compress_stride \(3\) must divide compress_block \(4\)"),
        ({"select_block": 3}, r"compress_stride \(2\) must divide select_block \(3\)"),
        ({"num_selected": 2}, "num_selected must be at least 3"),
        ({"window_size": 0}, "window_size must be"),
        ({"positions": "t5"}, "positions of native sparse attention are none or rotary, not t5"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_it_is_always_causal_and_takes_no_other_mask() -> None:
    with pytest.raises(UnsupportedError, match="always causal"):
        made(causal=False)
    with pytest.raises(UnsupportedError, match="arbitrary_mask"):
        made()(random(B, N, D), mask=masks.sliding_window(5))
