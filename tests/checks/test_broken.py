"""Every check can fail: each broken twin is caught by the promise that is meant for it."""

from __future__ import annotations

import pytest
from broken import TWINS

from attnlab.checks import Report, check_attention, every_promise
from attnlab.nn.attention import Attention

SLOW = {name for name, promise in every_promise().items() if promise.slow}


def cases() -> list[object]:
    return [
        pytest.param(promise, twin, id=f"{promise}-{twin.__name__}", marks=[pytest.mark.slow] * (promise in SLOW))
        for promise, twin in TWINS
    ]


def look(twin: type[Attention], promise: str) -> Report:
    return check_attention(twin, only=[promise], raises=False)


@pytest.mark.parametrize(("promise", "twin"), cases())
def test_the_promise_meant_for_it_catches_it(promise: str, twin: type[Attention]) -> None:
    row = look(twin, promise)[promise]
    assert row.outcome == "fail"
    assert row.detail, "a failure says where"


def test_every_promise_has_a_twin_that_breaks_it() -> None:
    assert set(every_promise()) == {promise for promise, _ in TWINS}


def test_twenty_twins_and_more() -> None:
    assert len({twin for _, twin in TWINS}) >= 20
