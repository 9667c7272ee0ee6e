"""Every mechanism keeps every promise that it makes: a newcomer's folder is found and tested unasked."""

from __future__ import annotations

import pytest

from attnlab import registry, trust
from attnlab.checks import check_attention, every_promise
from attnlab.checks.report import Report

SLOW = [name for name, promise in every_promise().items() if promise.slow]


def comes_out_as_recorded(name: str, report: Report) -> None:
    """docs/trust.md says of every promise what was found now."""
    recorded = trust.read(registry.entry(name).folder).promises
    moved = {row.promise: row.outcome for row in report.rows if recorded.get(row.promise) != row.outcome}
    assert not moved, f"record what is new with: attnlab check {name} --record && attnlab docs"


@pytest.mark.parametrize("name", registry.names())
def test_it_keeps_its_promises(name: str) -> None:
    report = check_attention(registry.load(name), fast=True)
    assert any(row.outcome == "pass" for row in report.rows)
    comes_out_as_recorded(name, report)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_it_compiles_and_exports(name: str) -> None:
    comes_out_as_recorded(name, check_attention(registry.load(name), only=SLOW))


@pytest.mark.parametrize("name", registry.names())
def test_it_has_a_reference_to_be_held_to(name: str) -> None:
    row = check_attention(registry.load(name), only=["fast path = reference, outputs"])
    assert row["fast path = reference, outputs"].outcome == "pass", f"models/{name}/reference.py is missing"


@pytest.mark.parametrize("name", registry.names())
def test_every_promise_is_recorded_and_an_implementation_by_others(name: str) -> None:
    found = trust.read(registry.entry(name).folder)
    assert set(found.promises) == set(every_promise())
    assert set(found.promises.values()) <= {"pass", "not claimed"}, "there is no third kind"
    for row in found.parity:
        assert row.float32 is None or row.float32 <= 1e-5, row
        assert row.float64 is None or row.float64 <= 1e-5, row
    assert found.nearest is not None, "hold it against an implementation by others in tests/parity, and record it"
