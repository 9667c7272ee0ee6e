"""The schedule of evaluations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import Split, TaskData
from attnlab.training.schedule import (
    MIN_EXAMPLES,
    SHARE,
    STEP_COST,
    evenly_spaced,
    schedule,
    snapshot_steps,
    validation_sample,
)
from attnlab.training.settings import Training
from attnlab.utils.errors import UserError


def task_data(train: int, validation: int, *, rare: int = 1) -> TaskData:
    def split(count: int) -> Split:
        y = torch.zeros(count, 1, dtype=torch.long)
        y[:rare] = 1
        return Split(torch.arange(count).view(-1, 1).expand(-1, 3), y)

    return TaskData(
        split(train), split(validation), split(7),
        inputs=Inputs("tokens", max(train, validation)), outputs=Outputs("classes", 2), length=3, metric="accuracy",
    )  # fmt: skip


@given(
    st.integers(20, 3_000), st.integers(5, 3_000), st.integers(1, 400), st.integers(1, 2_000),
    st.none() | st.integers(1, 500), st.none() | st.integers(2, 500),
)  # fmt: skip
def test_evaluation_takes_a_tenth_of_a_run_at_most(
    train: int, validation: int, batch_size: int, steps: int, every: int | None, examples: int | None
) -> None:
    how = Training(epochs=None, steps=steps, batch_size=batch_size, evaluate_every=every, validation_examples=examples)
    planned = schedule(how, task_data(train, validation))
    assert 1 <= planned.evaluate_every <= steps
    assert 1 <= planned.validation_examples <= validation
    if every is not None:
        assert planned.evaluate_every == min(every, steps)
    if examples is not None:
        assert planned.validation_examples == min(examples, validation)
    trained = STEP_COST * steps * min(batch_size, train)
    evaluated = planned.evaluations * planned.validation_examples
    few = planned.evaluations == 1 or planned.validation_examples <= MIN_EXAMPLES
    if every is None and examples is None:
        within = evaluated <= SHARE / (1 - SHARE) * trained
        assert within or (few and planned.evaluations == 1), (evaluated, trained)


def test_schedule_of_short_runs_and_small_splits() -> None:
    planned = schedule(Training(epochs=None, steps=20), task_data(88_000, 11_000))
    assert (planned.evaluations, planned.validation_examples) == (1, MIN_EXAMPLES)
    planned = schedule(Training(epochs=60), task_data(1_295, 143))
    assert (planned.evaluate_every, planned.validation_examples) == (planned.epoch_steps, 143)


def test_a_sample_keeps_the_rare_class() -> None:
    """3 of 2,000 are of class 1: a random sample of 17 would miss them."""
    asked = task_data(20, 2_000, rare=3)
    sampled = validation_sample(asked, 17)
    assert len(sampled.x) == 17
    assert set(sampled.y.flatten().tolist()) == {0, 1}
    assert len(torch.unique(sampled.x[:, 0])) == 17
    assert torch.equal(sampled.x, validation_sample(asked, 17).x)
    with pytest.raises(UserError, match=r"--validation_examples 1 .* classes \(2\)"):
        validation_sample(asked, 1)
    assert validation_sample(asked, 2_000) is asked.validation


@given(st.integers(1, 300), st.integers(1, 300))
def test_evenly_spaced(total: int, count: int) -> None:
    count = min(count, total)
    rows = evenly_spaced(total, count).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == count
    assert rows[0] >= 0
    assert rows[-1] < total
    assert total - rows[-1] <= -(-total // count)


@given(st.integers(0, 100), st.integers(1, 10**8))
def test_snapshots_are_evenly_spaced_on_a_logarithmic_scale(count: int, steps: int) -> None:
    taken = snapshot_steps(count, steps)
    assert len(set(taken)) == len(taken) == min(count, steps + 1)
    assert taken == sorted(taken)
    assert not taken or taken[-1] == steps
    assert count < 2 or taken[0] == 0
    gaps = [two - one for one, two in pairwise(taken)]
    assert all(two >= one - 1 for one, two in pairwise(gaps)), "the gaps grow, up to rounding"


def test_snapshots_of_a_thousand_steps() -> None:
    assert snapshot_steps(5, 1_000) == [0, 1, 10, 100, 1_000]
    assert [snapshot_steps(count, 7) for count in (0, 1, 2, 9)] == [[], [7], [0, 7], list(range(8))]
