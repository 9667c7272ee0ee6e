"""The options of the mechanisms: what is refused, what is counted, and when a mechanism equals another one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import CAUSAL, assert_same, perturbed, random

from attnlab import masks
from attnlab.catalog import registry
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention
from attnlab.network.pruning import prune_heads
from attnlab.positions import Rotary

B, N, H, D, d = 2, 7, 3, 12, 4

MULTIHEAD = 4 * D * (D + 1)
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("selfhead", {}, MULTIHEAD),
    ("multihead", {}, MULTIHEAD),
    ("multihead", {"bias": False}, 4 * D * D),
    ("additive", {}, MULTIHEAD + D),  # a score vector per head
    ("sinks", {}, MULTIHEAD + H),
    ("talkingheads", {}, MULTIHEAD + 2 * H * H),
    ("forgetting", {}, MULTIHEAD + H * (D + 1)),  # a gate per head
    ("differential", {}, MULTIHEAD + 4 * d // 2 + d),  # four vectors for λ, and the gains of the norm
    ("gated", {}, 5 * D * (D + 1)),
    ("gated", {"bias": False}, 5 * D * D),
    ("gated", {"gate": "headwise"}, (4 * D + H) * (D + 1)),
    ("multiquery", {}, (H + 2) * d * (D + 1) + D * (D + 1)),
    ("multiquery", {"bias": False}, (H + 2) * d * D + D * D),
    ("multiquery", {"head_dim": 10}, (H + 2) * 10 * (D + 1) + D * (10 * H + 1)),
    ("groupedquery", {"num_kv_heads": 1}, (H + 2) * d * (D + 1) + D * (D + 1)),
    ("groupedquery", {"num_kv_heads": 3, "bias": False}, 4 * D * D),
]


def build(name: str, **options: Any) -> Any:
    sizes = {} if name == "selfhead" else {"num_heads": H}
    return registry.load(name)(**{"embed_dim": D, **sizes, **options})


@pytest.mark.parametrize(("name", "options", "count"), PARAMETERS)
def test_the_number_of_parameters(name: str, options: dict[str, Any], count: int) -> None:
    assert sum(p.numel() for p in build(name, **options).parameters()) == count


def test_defaults() -> None:
    assert MultiAttention(64).num_heads == 8
    assert GroupedQueryAttention(64).num_kv_heads == 2
    assert build("sinks", sink="zero").sink.tolist() == build("sinks").sink.tolist() == [0.0] * H
    assert not build("sinks", sink="zero").sink.requires_grad


BIASES = ("none", "rotary", "alibi")
NEUTRAL: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "open gates": ("gated", {}, {"gate.projection.weight": 0.0, "gate.projection.bias": 50.0}, BIASES),
    "an open gate per head": (
        "gated",
        {"gate": "headwise"},
        {"gate.projection.weight": 0.0, "gate.projection.bias": 50.0},
        BIASES,
    ),
    "very low sinks": ("sinks", {}, {"sink": -800.0}, BIASES),
    "sinks of -inf": ("sinks", {}, {"sink": -torch.inf}, BIASES),
    "open forget gates": ("forgetting", {}, {"forget.bias": 60.0}, ("none", "rotary")),
    "mixtures that are the identity": (
        "talkingheads",
        {},
        {"scores": torch.eye(H), "mixture": torch.eye(H)},
        ("none", "rotary"),
    ),
    "a key head per query head": ("groupedquery", {"num_kv_heads": H}, {}, BIASES),
    "a full window": ("slidingwindow", {"window_size": N}, {}, BIASES),
    "one chunk": ("chunked", {"chunk_size": N}, {}, BIASES),
}


@pytest.mark.parametrize(("case", "positions"), [(case, p) for case, row in NEUTRAL.items() for p in row[3]])
@CAUSAL
def test_a_limit_is_multi_head_attention(case: str, positions: str, causal: bool) -> None:
    name, options, values, _ = NEUTRAL[case]
    layer, x = perturbed(build(name, **options, positions=positions, causal=causal)), random(B, N, D)
    with torch.no_grad():
        for parameter, value in values.items():
            layer.get_parameter(parameter).copy_(torch.as_tensor(value))
    multihead = MultiAttention(D, H, causal=causal, positions=positions).double().eval()
    multihead.load_state_dict({key: layer.state_dict()[key] for key in multihead.state_dict()})
    mask = masks.padding(torch.tensor([4, N]))
    assert_same(layer(x, mask=mask), multihead(x, mask=mask))
    assert_same(layer.attention_weights(x), multihead.attention_weights(x))


@CAUSAL
@pytest.mark.parametrize("positions", BIASES)
def test_multi_query_attention_is_grouped_query_attention_with_one_group(positions: Any, causal: bool) -> None:
    layer, x = perturbed(build("multiquery", causal=causal, positions=positions)), random(B, N, D)
    grouped = GroupedQueryAttention(D, H, num_kv_heads=1, causal=causal, positions=positions).double()
    grouped.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), grouped(x))
    assert torch.equal(layer.attention_weights(x), grouped.attention_weights(x))


PRUNED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in registry.names() if name not in ("selfhead", "latent", "groupedquery", "mamba2", "nsa")),
    ("additive", {"positions": "alibi"}),
    ("differential", {"positions": "rotary"}),
    ("forgetting", {"positions": "rotary"}),
    ("gated", {"gate": "headwise", "positions": "t5"}),
    ("longformer", {"window_size": 2, "num_global": 2, "positions": "t5"}),
    ("sinks", {"sink": "zero", "positions": "alibi"}),
    ("strided", {"pattern": "fixed", "stride": 4, "summary": 2}),
]


@pytest.mark.parametrize(("name", "options"), PRUNED)
@pytest.mark.parametrize("pruned", [[1], [2, 0]])
@torch.no_grad()
def test_a_pruned_head_contributes_zero(name: str, options: dict[str, Any], pruned: list[int]) -> None:
    causal = "causal" in registry.entry(name).card.supports
    layer, x = perturbed(build(name, embed_dim=24, causal=causal, **options)), random(B, N, 24)
    if name == "talkingheads":  # without mixing, because other heads depend on each head
        for matrix in (layer.scores, layer.mixture):
            torch.nn.init.eye_(matrix)
    small = prune_heads(layer, pruned)
    assert_same(small.attention_weights(x), layer.attention_weights(x)[:, [h for h in range(H) if h not in pruned]])
    layer.output.weight.unflatten(1, (H, -1))[:, pruned] = 0
    assert_same(small(x), layer(x))


LATENT = {"embed_dim": 13, "kv_latent_dim": 7, "head_dim": 5, "rope_head_dim": 4}
POSITIVE = "must be at least 1, not 0$"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("additive", {"positions": "t5(buckets=1)"}, "buckets"),
    ("additive", {"positions": "rotary"}, "^rotary positions need a product of query and key, .*; use alibi or t5$"),
    ("bigbird", {"block_size": 0}, "^block_size " + POSITIVE),
    ("bigbird", {"num_random": -1}, "^num_random must be at least 0, not -1$"),
    ("bigbird", {"num_random": 10**12}, "^num_random must be at most 1,000, not 1000000000000$"),
    ("bigbird", {"window_size": 2}, "must be odd, with the block of the token in the middle, not 2; try 3$"),
    ("differential", {"embed_dim": 15}, r"^embed_dim / num_heads \(5\) must be even: each head has two queries$"),
    ("differential", {"lambda_init": 1.0}, "^lambda_init must be at least 0 and below 1, not 1.0$"),
    ("differential", {"lambda_init": -0.1}, "^lambda_init must be at least 0 and below 1, not -0.1$"),
    ("differential", {"lambda_init": float("nan")}, "^lambda_init must be at least 0 and below 1, not nan$"),
    ("differential", {"embed_dim": 30, "positions": "rotary"}, "even"),
    ("differential", {"embed_dim": 30, "positions": Rotary(10)}, "10, not 5"),
    *(
        ("entmax", {"alpha": alpha}, rf"^alpha must be above 1 \(softmax is the limit\) and at most 4, not {alpha}$")
        for alpha in (1.0, 1, 0.5, -2.0, 4.5, float("nan"), float("inf"))
    ),
    ("forgetting", {"positions": "rotary", "num_heads": 4}, "^rotary positions need an even head_dim, not 3"),
    ("forgetting", {"positions": "forget"}, "^positions is none, rotary, alibi or t5"),
    ("forgetting", {"positions": "alibi"}, "^ForgettingAttention takes positions none or rotary, not alibi"),
    ("gated", {"gate": "scalar"}, "^gate must be 'elementwise' or 'headwise', not 'scalar'$"),
    ("gated", {"gate": True}, "^gate must be 'elementwise' or 'headwise', not True$"),
    ("latent", {**LATENT, "kv_latent_dim": 0}, "^kv_latent_dim " + POSITIVE),
    ("latent", {**LATENT, "rope_head_dim": 3}, "even"),
    ("latent", {**LATENT, "positions": "alibi"}, "positions of latent attention are rotary or none, not alibi"),
    ("linear", {"feature_map": "cos"}, "^feature_map must be one of elu, relu, softmax, not 'cos'$"),
    ("multiquery", {"head_dim": 0}, "^head_dim " + POSITIVE),
    ("sinks", {"sink": "one"}, "^sink must be 'learned' or 'zero', not 'one'$"),
    ("sinks", {"sink": 0}, "^sink must be 'learned' or 'zero', not 0$"),
    ("strided", {"pattern": "stride"}, "^pattern must be 'strided' or 'fixed', not 'stride'$"),
    ("strided", {"stride": 4, "summary": 5}, r"^summary \(5\) must be at most stride \(4\)"),
    ("strided", {"num_heads": 1}, "^num_heads must be at least 2"),
    ("talkingheads", {"positions": "t5"}, "^TalkingHeadsAttention supports positions none and rotary, not t5"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_invalid_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bigbird", {"num_global": 0.0}, "num_global must be an integer, not 0.0"),
        ("bigbird", {"num_random": False}, "num_random must be an integer, not False"),
        ("latent", {"q_latent_dim": 2.5}, "q_latent_dim must be an integer, not 2.5"),
        ("multiquery", {"head_dim": 1.5}, "head_dim must be an integer, not 1.5"),
        ("multiquery", {"num_kv_heads": 2}, "unexpected keyword argument 'num_kv_heads'"),
    ],
)
def test_options_of_another_type_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}$"):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("slidingwindow", "window_size"),
        ("slidingwindow", "dilation"),
        ("longformer", "window_size"),
        ("longformer", "num_global"),
        ("chunked", "chunk_size"),
        ("strided", "stride"),
        ("strided", "summary"),
    ],
)
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_sizes_must_be_positive_integers(name: str, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{option} must be .*, not {value}$"):
        build(name, **{option: value})
