"""Every check can fail: each faulty layer fails the checks that it is registered for."""

from __future__ import annotations

import pytest
from faulty import FAULTY
from mechanisms import trace_only

from attnlab.checks import all_checks, check_attention
from attnlab.nn.attention import Attention

SLOW = {name for name, check in all_checks().items() if check.slow} | {
    "low_precision_accuracy",
    "low_precision_error_growth",
}
CASES = [
    pytest.param(check, layer, id=f"{check}-{layer.__name__}", marks=[pytest.mark.slow] if check in SLOW else [])
    for check, layer in FAULTY
]


@pytest.mark.parametrize(("check", "layer"), CASES)
def test_faulty_layer_fails_its_check(check: str, layer: type[Attention], monkeypatch: pytest.MonkeyPatch) -> None:
    trace_only(monkeypatch, 0)
    row = check_attention(layer, only=[check], raises=False)[check]
    assert row.outcome == "fail"
    assert row.detail, "the detail of a failure describes where it was measured"


def test_every_check_has_a_faulty_layer() -> None:
    assert set(all_checks()) == {check for check, _ in FAULTY}
    assert len(FAULTY) >= 90
