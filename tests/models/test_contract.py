"""Every mechanism keeps every promise that it makes: a newcomer's folder is found and tested unasked."""

from __future__ import annotations

import pytest

from attnlab.catalog import registry
from attnlab.checks import check_attention, every_promise
from attnlab.checks.report import Report
from attnlab.docs import trust

THROUGH_A_COMPILER = ("multihead", "sinks", "slidingwindow")
"""A plain kernel, one with a sink in it, and a pattern."""

SLOW = [name for name, promise in every_promise().items() if promise.slow]


def comes_out_as_recorded(name: str, report: Report) -> None:
    """docs/trust.md says of every promise what was found now."""
    recorded = trust.read(registry.entry(name).folder).promises  # nothing yet of a newcomer
    moved = {row.promise: row.outcome for row in report.rows if recorded and recorded.get(row.promise) != row.outcome}
    assert not moved, f"record what is new with: attnlab check {name} --record && attnlab docs"


@pytest.mark.parametrize("name", registry.names())
def test_it_keeps_its_promises(name: str) -> None:
    report = check_attention(registry.load(name), fast=True)
    assert any(row.outcome == "pass" for row in report.rows)
    comes_out_as_recorded(name, report)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_it_compiles_and_exports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced all, in one graph; a C++ compiler takes most of a minute for one, so that a few alone go through it here.

    What is recorded was found with it for each.
    """
    if name not in THROUGH_A_COMPILER:
        monkeypatch.setattr("attnlab.checks.families.export.shutil.which", lambda command: None)
    comes_out_as_recorded(name, check_attention(registry.load(name), only=SLOW))


@pytest.mark.parametrize("name", registry.names())
def test_it_has_a_reference_to_be_held_to(name: str) -> None:
    row = check_attention(registry.load(name), only=["fast path = reference, outputs"])
    assert row["fast path = reference, outputs"].outcome == "pass", f"models/{name}/reference.py is missing"


def test_every_promise_is_recorded_and_an_implementation_by_others() -> None:
    for name in registry.names():
        found = trust.read(registry.entry(name).folder)
        assert set(found.promises) == set(every_promise()), f"attnlab check {name} --record"
        assert set(found.promises.values()) <= {"pass", "not claimed"}, "there is no third kind"
        assert found.nearest is not None, f"hold {name} against an implementation by others in tests/models"
        for row in found.parity:
            assert max(row.float32 or 0, row.float64 or 0) <= 1e-5, row
