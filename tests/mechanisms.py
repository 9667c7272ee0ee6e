"""The mechanisms by their capabilities and code paths, for tests that need one of each."""

from __future__ import annotations

import pytest

from attnlab.catalog import registry
from attnlab.checks.families import export
from attnlab.nn.card import CAPABILITIES

REPRESENTATIVES = [
    "multihead",  # one kernel call
    "sinks",  # a kernel of attnlab
    "slidingwindow",  # an attention pattern
    "strided",  # a pattern per head
    "longformer",  # two attention maps and parameters of its own
    "latent",  # two forms of the forward pass
    "additive",  # other scores than products
    "talkingheads",  # a function of all scores of a row
    "forgetting",  # a decay
    "linear",  # a scan
]
"""One mechanism per code path, for tests of code that all mechanisms share."""

EXPENSIVE = ("traceable", "higher_derivatives_with_math_backend")
"""A quarter of the time of the fast checks; in `make test` only for a few mechanisms. test_tracing.py traces all."""

INDEPENDENT_OF_OPTIONS = (
    *EXPENSIVE,
    "batch_invariance",
    "dropout_is_unbiased",
    "extreme_scores_stay_finite",
    "gradients_match_finite_differences",
    "low_precision_error_growth",
    "nan_in_padding_is_ignored",
    "second_derivatives_exact_or_raise",
    "windowed_cache_matches_full_pass",
)
"""More than half of the time of the fast checks; for options and pruned layers only in the exhaustive run.

These properties are those of ops and bases, which the defaults exercise.
"""


def supporting(*capabilities: str, among: list[str] | None = None) -> list[str]:
    """The names of the mechanisms that have all of these capabilities; there is at least one."""
    assert {*capabilities} <= CAPABILITIES.keys(), capabilities
    names = registry.names() if among is None else among
    names = [name for name in names if {*capabilities} <= {*registry.entry(name).card.supports}]
    assert names
    return names


def trace_only(monkeypatch: pytest.MonkeyPatch, *modules: int, compiler: bool = False) -> None:
    """Let the checks of compilation and export take only these of `export.modules`, all if none is given.

    Without the ``compiler`` they use aot_eager, which is much faster.
    """
    every = export.modules
    if modules:
        monkeypatch.setattr(export, "modules", lambda case: [list(every(case))[i] for i in modules])
    if not compiler:
        monkeypatch.setattr(export.shutil, "which", lambda command: None)
