"""Digits, capacities and verdicts."""

import math

import pytest

from attnlab.comparison import analysis
from attnlab.comparison.results import IntervalRecord
from tests.comparison.small import results

GOOD, SAME, BAD = [0.90, 0.92, 0.91], [0.905, 0.917, 0.911], [0.40, 0.45, 0.41]


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.91234, 0.0161, "0.912 ± 0.016"),
        (0.91234, 0.021, "0.91 ± 0.02"),
        (0.91234, 0.0000021, "0.9123 ± 0.0000"),
        (1234.5, 12.0, "1,234 ± 12"),
        (1.23e-6, 3e-7, "0.0000012 ± 0.0000003"),
        (-0.0004, 0.03, "0.00 ± 0.03"),
        (-0.25, 0.03, "−0.25 ± 0.03"),
    ],
)
def test_digits_follow_the_interval(mean: float, half: float, text: str) -> None:
    assert analysis.with_interval(IntervalRecord(mean=mean, low=mean - half, high=mean + half, n=5)) == text


def test_a_single_seed_has_three_significant_digits() -> None:
    texts = [analysis.with_interval(IntervalRecord(mean=mean, low=None, high=None, n=1)) for mean in (0.5, 1.234e-6)]
    assert texts == ["0.500", "0.00000123"]


def test_bounds_of_a_difference_have_no_sign() -> None:
    worse = IntervalRecord(mean=-0.2, low=-0.3, high=-0.1, n=3)
    better = IntervalRecord(mean=0.2, low=0.1, high=0.3, n=3)
    assert analysis.bounds(worse) == analysis.bounds(better) == "0.2 (0.1 to 0.3)"


def test_capacity_is_interpolated_for_each_seed() -> None:
    curves = {0: [(4.0, 1.0), (8.0, 1.0), (16.0, 0.9)], 1: [(4.0, 1.0), (8.0, 0.95), (16.0, 0.5)]}
    found = analysis.capacity("linear", curves)
    assert found.at is not None
    assert found.at.mean == pytest.approx((math.sqrt(8 * 16) + 8) / 2)
    never = analysis.capacity("softmax", {0: [(4.0, 1.0), (8.0, 0.99)], 1: [(4.0, 1.0), (8.0, 0.5)]})
    assert (never.at, never.above, never.below) == (None, 1, 0)
    assert analysis.capacity("none", {0: [(4.0, 0.5), (8.0, 1.0)]}).below == 1


def test_verdict_names_what_is_worse_and_what_cannot_be_distinguished() -> None:
    text = analysis.verdict(results({"softmax": GOOD, "same": SAME, "linear": BAD}))
    assert text.startswith("same has the highest accuracy, 0.911 ± 0.015, not distinguishable from softmax at n = 3; ")
    assert "worse than softmax: linear by 0.49 (0.45 to 0.53)" in text
    assert "not distinguishable from softmax: same (a difference of 0.0" in text
    assert "better than" not in text


def test_verdict_without_differences_and_below_a_simpler_method() -> None:
    text = analysis.verdict(results({"a": GOOD, "b": SAME}, baselines={"nearest neighbours": 0.95}))
    assert "no two mechanisms can be distinguished at n = 3" in text
    assert 'no mechanism is better than the simpler method "nearest neighbours" (0.950 ± 0.000)' in text
    assert "simpler method" not in analysis.verdict(results({"a": GOOD, "b": BAD}, baselines={"chance": 0.1}))


def test_verdict_with_one_seed_or_failed_runs() -> None:
    assert analysis.verdict(results({"a": [0.5], "b": [0.6]})).startswith("One seed gives no interval")
    text = analysis.verdict(results({"a": GOOD, "b": BAD[:2]}))
    assert "runs that failed: b (1 of 3)" in text
    assert "worse" not in text  # the mean of b leaves out the run that went wrong
    made = results({"a": BAD, "b": GOOD[:2]})
    assert analysis.verdict(made).startswith("a has the highest accuracy")
    assert [case.label for case in made.at(None)] == ["a", "b"]


def test_verdict_on_capacities_names_mechanisms_with_failed_runs() -> None:
    made, complete = (results({"a": GOOD, "b": b}, points=(4, 8)) for b in (BAD[:2], BAD))
    found = [
        analysis.capacity(label, {seed: [(4.0, 1.0), (8.0, end)] for seed in range(3)})
        for label, end in {"a": 0.9, "b": 0.5}.items()
    ]
    text = analysis.verdict(made.model_copy(update={"capacities": found}))
    assert text.startswith("The pairs at which accuracy falls below 95%: a ")
    assert text.endswith("Runs of b failed, and are left out.")
    same = [found[0], found[0].model_copy(update={"label": "b"})]  # which says nothing about a ranking
    assert analysis.verdict(complete.model_copy(update={"capacities": same})).startswith(
        "At pairs 8: a has the highest"
    )
    assert "left out" not in analysis.verdict(complete.model_copy(update={"capacities": found}))
