"""Every mechanism passes every applicable check; a new folder in models/ is tested without further registration."""

from __future__ import annotations

import pytest
from mechanisms import REPRESENTATIVES

from attnlab.catalog import registry
from attnlab.checks import all_checks, check_attention
from attnlab.checks.report import Report
from attnlab.docs import trust

INDUCTOR = ("multihead", "sinks", "slidingwindow")
"""The representatives that inductor compiles to C++, which takes most of a minute; the others are traced only."""

SLOW = [name for name, check in all_checks().items() if check.slow]


def assert_recorded(name: str, report: Report) -> None:
    """The outcomes are those of trust.json, from which docs/trust.md is generated."""
    recorded = trust.read(registry.entry(name).folder).checks  # empty for a new mechanism
    changed = {row.check: row.outcome for row in report.rows if recorded and recorded.get(row.check) != row.outcome}
    assert not changed, f"record the new outcomes with: attnlab check {name} --record && attnlab docs"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in REPRESENTATIVES else [pytest.mark.slow]) for name in registry.names()],
)
def test_conformance(name: str) -> None:
    report = check_attention(registry.load(name), fast=True)
    assert report["matches_reference_outputs"].outcome == "pass", f"models/{name}/reference.py is missing"
    assert_recorded(name, report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in REPRESENTATIVES else [pytest.mark.exhaustive])
        for name in registry.names()
    ],
)
def test_slow_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile, export and memory checks of one mechanism per code path; test_tracing.py traces all mechanisms."""
    if name not in INDUCTOR:
        monkeypatch.setattr("attnlab.checks.families.export.shutil.which", lambda command: None)
    assert_recorded(name, check_attention(registry.load(name), only=SLOW))


def test_every_check_and_another_implementation_are_recorded() -> None:
    for name in registry.names():
        evidence = trust.read(registry.entry(name).folder)
        assert set(evidence.checks) == set(all_checks()), f"attnlab check {name} --record"
        assert set(evidence.checks.values()) <= {"pass", "not applicable"}
        assert evidence.nearest is not None, f"compare {name} with another implementation in tests/models"
        for row in evidence.parity:
            assert max(row.float32 or 0, row.float64 or 0) <= 1e-5, row
