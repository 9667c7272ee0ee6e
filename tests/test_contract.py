"""Every mechanism keeps every promise that it makes: a newcomer's folder is found and tested unasked."""

from __future__ import annotations

import pytest

from attnlab import registry
from attnlab.checks import check_attention, every_promise

SLOW = [name for name, promise in every_promise().items() if promise.slow]


@pytest.mark.parametrize("name", registry.names())
def test_it_keeps_its_promises(name: str) -> None:
    report = check_attention(registry.load(name), fast=True)
    assert any(row.outcome == "pass" for row in report.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_it_compiles_and_exports(name: str) -> None:
    check_attention(registry.load(name), only=SLOW)


@pytest.mark.parametrize("name", registry.names())
def test_it_has_a_reference_to_be_held_to(name: str) -> None:
    row = check_attention(registry.load(name), only=["fast path = reference, outputs"])
    assert row["fast path = reference, outputs"].outcome == "pass", f"models/{name}/reference.py is missing"
