"""Every mechanism passes every applicable check; a new folder in models/ is tested without further registration."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from mechanisms import EXPENSIVE, INDEPENDENT_OF_OPTIONS, trace_only

from attnlab.catalog import registry
from attnlab.checks import all_checks, check_attention
from attnlab.checks.report import Report
from attnlab.docs import trust

EXPORTED = ("multihead", "sinks", "slidingwindow", "linear")
"""The representatives that `make test` compiles, exports and runs in ONNX; test_tracing.py traces all mechanisms."""

INDUCTOR = ("multihead", "sinks", "slidingwindow")
"""The representatives that inductor compiles to C++, which takes most of a minute; the others are traced only."""

QUICK = ("multihead",)
"""The mechanism on which `make quick` runs the conformance suite; `make test` runs it on all."""

SLOW = [name for name, check in all_checks().items() if check.slow]


def assert_recorded(name: str, report: Report) -> None:
    """The outcomes are those of trust.json, from which docs/trust.md is generated."""
    recorded = trust.read(registry.entry(name).folder).checks  # empty for a new mechanism
    changed = {row.check: row.outcome for row in report.rows if recorded and recorded.get(row.check) != row.outcome}
    assert not changed, f"record the new outcomes with: attnlab check {name} --record && attnlab docs"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in registry.names()],
)
def test_conformance(name: str) -> None:
    report = check_attention(registry.load(name), fast=True, skip=() if name in EXPORTED else EXPENSIVE)
    assert report["matches_reference_outputs"].outcome == "pass", f"models/{name}/reference.py is missing"
    assert_recorded(name, report)


ISOLATED = ("tokens_interact", "weights_are_per_head")
"""In some of the checks a token attends only to itself, so none reaches another and all heads agree."""

AMPLIFIED = ("bfloat16_autocast", "low_precision_accuracy")
"""Where both softmaxes of differential attention nearly agree, the norm amplifies the rounding of bfloat16."""

EDGES = ("bfloat16_autocast", "gradients_match_finite_differences", "cross_attention", "dynamic_quantization")
EDGES += ("low_precision_accuracy", "low_precision_error_growth")
"""Above α = 2 the slope is unbounded where a weight begins, hardly any key has a nonzero weight, and rounding changes
much. At α = 2 the derivative jumps there, and rounding decides which weights are zero."""

SELECTS = ("cross_attention", "dynamic_quantization")
"""Where few keys are selected: a query ignores the others, and rounding of the weights to int8 selects other keys."""

NEARLY_SINGULAR = (*EDGES[3:], "higher_derivatives_with_math_backend")
"""The exact inverse of a nearly singular matrix between the landmarks multiplies every rounding error."""

OPTIONS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("bigbird", {"block_size": 1, "num_global": 0, "num_random": 2}, ()),
    ("chunked", {"chunk_size": 3, "positions": "rotary"}, ()),
    ("dsa", {"num_heads": 2, "top_k": 3, "index_dim": 4, "positions": "rotary"}, SELECTS),
    ("entmax", {"alpha": 2.0}, ("low_precision_accuracy",)),
    ("forgetting", {"num_heads": 2, "positions": "rotary"}, ()),
    ("gated", {"num_heads": 2, "gate": "headwise", "positions": "t5"}, ()),
    ("gateddeltanet", {"key_dim": 5, "value_dim": 3, "allow_neg_eigval": True, "output_norm": False}, ()),
    ("groupedquery", {"num_heads": 6, "num_kv_heads": 3, "head_dim": 4, "positions": "rotary"}, ()),
    ("latent", {"q_latent_dim": 5, "rope_head_dim": 2}, ()),
    ("linformer", {"rank": 16, "sharing": "none"}, ()),
    ("performer", {"num_features": 1, "feature_seed": 3}, ()),
    (
        "nsa",
        {"num_heads": 6, "num_kv_heads": 2, "window_size": 2}
        | {"compress_block": 2, "compress_stride": 1, "select_block": 1, "num_selected": 3},
        (),
    ),
    (
        "nsa",
        {"num_heads": 2, "positions": "rotary", "window_size": 1}
        | {"compress_block": 4, "compress_stride": 2, "select_block": 2, "num_selected": 3},
        (),
    ),
    ("reformer", {"num_buckets": 4, "num_hashes": 3, "chunk_length": 2}, ()),
    ("retention", {"num_heads": 2, "value_dim": 3, "short_conv": 2, "output_norm": False}, ()),
    ("nystrom", {"num_landmarks": 3, "conv_kernel": 3}, ()),
    ("nystrom", {"num_landmarks": 5, "inverse": "exact"}, NEARLY_SINGULAR),
    ("sinks", {"num_heads": 2, "positions": "rotary", "sink": "learned"}, ()),
    ("slidingwindow", {"window_size": 3, "positions": "alibi"}, ()),
    ("stickbreaking", {"attend_current": True}, ()),
    ("strided", {"pattern": "fixed", "stride": 4, "summary": 2}, ()),
]
"""Mechanism, options, and checks that do not apply to it."""

REPEATED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("differential", {"num_heads": 2, "positions": "t5"}, AMPLIFIED),
    ("gateddeltanet", {"short_conv": 0, "output_norm": False, "output_gate": "none", "bias": True}, ()),
    ("gatedlinear", {"num_heads": 2, "key_dim": 3, "short_conv": 2, "output_gate": "sigmoid"}, ()),
    ("kimidelta", {"rank": 2, "short_conv": 0, "output_gate": "swish"}, ()),
    ("latent", {"kv_latent_dim": 3, "head_dim": 5}, ()),
    ("linformer", {"rank": 80, "sharing": "key-value"}, ()),
    ("longformer", {"window_size": 3, "positions": "t5"}, ()),
    ("reformer", {"num_buckets": 1, "num_hashes": 1, "chunk_length": 3}, ()),
    ("rwkv7", {"rank": 1, "output_norm": False, "bias": True}, ()),
    ("slidingwindow", {"window_size": 2, "dilation": 2}, ISOLATED),
    ("talkingheads", {"num_heads": 2, "positions": "rotary"}, ()),
    ("additive", {"num_heads": 2, "positions": "t5"}, ()),
    ("bigbird", {"block_size": 2, "num_random": 0, "positions": "rotary"}, ()),
    ("deltanet", {"key_dim": 5, "value_dim": 3, "allow_neg_eigval": True, "output_norm": False}, ()),
    ("differential", {"num_heads": 2, "positions": "rotary"}, AMPLIFIED),
    ("dsa", {"top_k": 2, "index_heads": 2, "index_dim": 3}, SELECTS),
    ("entmax", {"alpha": 1.25}, ()),
    ("latent", {"positions": "none"}, ()),
    ("sinks", {"num_heads": 2, "positions": "alibi", "sink": "zero"}, ()),
    ("slidingwindow", {"window_size": 1}, ISOLATED),
    ("strided", {"stride": 3, "positions": "alibi"}, ()),
    ("retention", {"num_heads": 2, "positions": "none", "output_gate": "none"}, ()),
    ("longformer", {"window_size": 1, "num_global": 3}, ()),
    *(("additive", {"num_heads": 2, "positions": "alibi"}, ()), ("entmax", {"alpha": 4.0}, EDGES)),
    *(("entmax", {"positions": p}, ()) for p in ("rotary", "alibi")),
    *((name, {"num_heads": 2, "positions": p}, ()) for name in ("gated", "sigmoid") for p in ("rotary", "t5")),
    *(("multiquery", {"num_heads": 2, "positions": p}, ()) for p in ("rotary", "alibi")),
    *(("sinks", {"num_heads": 2, "positions": p}, ()) for p in ("none", "t5")),
]
"""Options whose code path `OPTIONS` has too, or `test_recurrences.py` for the parts of recurrences."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "skip"),
    [
        *((name, options, (*skip, *INDEPENDENT_OF_OPTIONS)) for name, options, skip in OPTIONS),
        *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in (*OPTIONS, *REPEATED)),
    ],
)
def test_conformance_with_options(name: str, options: dict[str, Any], skip: tuple[str, ...]) -> None:
    check_attention(partial(registry.load(name), **options), fast=True, skip=skip)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every_module"),
    [
        *((name, False) for name in EXPORTED),
        *(pytest.param(name, True, marks=pytest.mark.exhaustive) for name in registry.names()),
    ],
)
def test_slow_checks(name: str, every_module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile, export and memory checks.

    By default only the last module, causal and with a mask; with a compiler the first one too.
    """
    compiler = name in INDUCTOR
    trace_only(monkeypatch, *() if every_module else (0, -1) if compiler else (-1,), compiler=compiler)
    assert_recorded(name, check_attention(registry.load(name), only=SLOW))


def test_every_check_and_another_implementation_are_recorded() -> None:
    for name in registry.names():
        evidence = trust.read(registry.entry(name).folder)
        assert set(evidence.checks) == set(all_checks()), f"attnlab check {name} --record"
        assert set(evidence.checks.values()) <= {"pass", "not applicable"}
        assert evidence.nearest is not None, f"compare {name} with another implementation in tests/models"
        for row in evidence.parity:
            assert max(row.float32 or 0, row.float64 or 0) <= 1e-5, row
