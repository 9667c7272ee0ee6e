"""Equal parameters, time and operations."""

import pytest

from attnlab.comparison import budget
from attnlab.comparison.plan import Case
from attnlab.training.experiment import load_task_data
from attnlab.training.settings import Settings
from tests.comparison.small import settings

WIDER = {"embed_dim": 24, "num_heads": 2, "layers": 2}


def cases(**values: object) -> list[Case]:
    return [Case(name, settings(name, **WIDER, **values)) for name in ("multihead", "linear", "mamba2", "multiquery")]


@pytest.mark.parametrize("mlp", [True, False])
def test_parameters_are_matched(mlp: bool) -> None:
    given = cases(mlp=mlp)
    data = load_task_data(given[0].settings)
    before = [budget.count_parameters(case.settings, data) for case in given]
    assert max(before) / min(before) > 1.1  # there is something to match
    matched = budget.match_parameters(given, data)
    deviations = [abs(budget.deviation(case, matched[0], data)) for case in matched]
    assert matched[0] == given[0]
    assert deviations[0] == 0
    assert max(deviations) <= (budget.TOLERANCE if mlp else 0.25)
    if mlp:  # a wide enough MLP makes up for the attention layers
        assert [case.settings.model.embed_dim for case in matched if case.label != "mamba2"] == [24, 24, 24]


def test_steps_are_matched_to_their_cost() -> None:
    given = cases()[:2]
    data = load_task_data(given[0].settings)
    matched = budget.match_steps(given, data, {"multihead": 1.0, "linear": 0.4})
    assert [case.settings.training.steps for case in matched] == [3, 8]
    assert all(case.settings.training.epochs is None for case in matched)


def test_operations_of_attention_are_counted() -> None:
    one, two = (Case("multihead", settings("multihead", seq_length=N, mlp=False)) for N in (32, 64))
    flops = [budget.step_flops([case], load_task_data(case.settings))["multihead"] for case in (one, two)]
    B, H, d, vocabulary = 5, 2, 4, 16
    D = H * d

    def expected(N: int) -> int:
        linear = 2 * B * N * D * (3 * D + D + vocabulary)
        attention = 2 * 2 * B * H * N * N * d
        return 3 * (linear + attention)  # the backward pass has two products for each of the forward pass

    assert flops == [pytest.approx(expected(N), rel=0.02) for N in (32, 64)]


def test_seconds_per_step_rank_a_slow_network_last() -> None:
    small, large = settings("multihead"), settings("multihead", embed_dim=64, layers=4)
    data = load_task_data(small)
    seconds = budget.step_seconds([Case("small", small), Case("large", large)], data)
    assert 0 < seconds["small"] < seconds["large"]


def test_budgets_do_not_change_the_given_settings() -> None:
    given = cases()
    before = [case.settings.flat() for case in given]
    data = load_task_data(given[0].settings)
    budget.match_parameters(given, data)
    budget.match_steps(given, data, dict.fromkeys((case.label for case in given), 1.0))
    assert [case.settings.flat() for case in given] == before
    assert isinstance(given[0].settings, Settings)
