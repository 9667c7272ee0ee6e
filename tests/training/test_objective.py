"""Losses and metrics against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import CLASSES, F, N, experiment, task_data
from torch import Tensor, nn

from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import IGNORE, Split, TaskData
from attnlab.training.objective import Objective, evaluate, predict
from attnlab.training.report import number


class Echo(nn.Module):
    """A network that returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return x


def judged(metric: str, x: Tensor, y: Tensor, *, batch_size: int = 2, unit: float = 1.0) -> tuple[float, float]:
    network: Any = Echo()
    return evaluate(network, Split(x, y), Objective(metric, unit), batch_size=batch_size)


def scores(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log().unsqueeze(1)


def test_accuracy_and_cross_entropy() -> None:
    x = scores([0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.5, 0.25, 0.25])
    y = torch.tensor([[0], [1], [2]])
    loss, accuracy = judged("accuracy", x, y)
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.75) + math.log(0.25)) / 3)
    assert float(Objective("accuracy").loss(x, y)) == pytest.approx(loss)


def test_bits_per_byte_are_the_cross_entropy_to_base_two() -> None:
    x = scores([0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.5, 0.25, 0.25]).transpose(0, 1)  # one sequence of 3
    y = torch.tensor([[0, 0, 2]])
    assert judged("bits_per_byte", x, y)[1] == pytest.approx((1 + 3 + 2) / 3)


@pytest.mark.parametrize("metric", ["accuracy", "bits_per_byte"])
def test_ignored_targets_do_not_count(metric: str) -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    y = torch.full((3, 5), IGNORE)
    y[0, 1], y[2, 4] = 3, int(x[2, 4].argmax())
    asked = torch.stack([x[0, 1], x[2, 4]]).unsqueeze(1)
    expected = judged(metric, asked, torch.stack([y[0, 1], y[2, 4]]).unsqueeze(1))
    assert judged(metric, x, y) == pytest.approx(expected)
    assert float(Objective(metric).loss(x, y)) == pytest.approx(expected[0])
    x[1] = 1e4  # wherever nothing is asked, anything may stand
    assert judged(metric, x, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective", [Objective("accuracy"), Objective("accuracy", class_weights=(0.5, 2.0, 7.0)), Objective("rmse")]
)
def test_the_sum_of_the_losses_divided_by_the_weight_is_their_mean(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (5, 7), generator=generator)
    y[1:3] = IGNORE
    x = torch.randn(5, 7, 3, generator=generator).double()
    if objective.of_values:
        x, y = x[..., 0], y.double()
    total, weight = objective.loss(x, y, "sum"), objective.weight(y)
    assert float(total / weight) == pytest.approx(float(objective.loss(x, y)), rel=1e-12)


def test_root_mean_squared_error_in_the_users_unit() -> None:
    x, y = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0]])
    loss, error = judged("rmse", x, y, unit=10.0)
    assert loss == pytest.approx((4 + 16 + 4) / 6)
    assert error == pytest.approx(10 * math.sqrt((4 + 16 + 4) / 6))
    assert float(Objective("rmse", 10.0).loss(x, y)) == pytest.approx(loss)


@pytest.mark.parametrize("metric", ["accuracy", "bits_per_byte", "rmse"])
def test_the_size_of_a_batch_does_not_change_the_result(metric: str) -> None:
    """Also if the last batch is smaller and has fewer targets."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, 3, generator=generator), torch.randint(3, (7, 5), generator=generator)
    y[5:, 1:] = IGNORE
    if metric == "rmse":
        x, y = x[..., 0], torch.randn(7, 5, generator=generator)
    whole = judged(metric, x, y, batch_size=100)
    for size in (1, 2, 3, 7):
        assert judged(metric, x, y, batch_size=size) == pytest.approx(whole)


def test_no_targets() -> None:
    assert judged("accuracy", torch.randn(2, 3, 5), torch.full((2, 3), IGNORE)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "good", "bad"), [("accuracy", 0.9, 0.1), ("bits_per_byte", 2.0, 8.0), ("rmse", 0.0, 3.0)]
)
def test_which_is_better(metric: str, good: float, bad: float) -> None:
    objective = Objective(metric)
    assert objective.better(good, bad)
    assert not objective.better(bad, good)
    assert not objective.better(good, good), "a plateau is no progress"
    assert objective.better(bad, None)
    for old in (None, bad):
        assert not objective.better(math.nan, old)


def test_objective_of_a_task() -> None:
    asked = TaskData(
        *(Split(torch.zeros(1, N, F), torch.zeros(1, 1)) for _ in range(3)),
        inputs=Inputs("vectors", F),
        outputs=Outputs("values", 1),
        length=N,
        metric="rmse",
        unit=2.5,
    )
    assert Objective.of(asked) == Objective("rmse", 2.5)


def test_one_prediction_per_row_in_order_without_dropout() -> None:
    data = task_data()
    network = experiment(data, dropout=0.5).network
    scores = predict(network, data.test, batch_size=4)
    assert network.training
    assert scores.shape == (len(data.test.x), 1, CLASSES)
    lengths = data.test.lengths
    assert lengths is not None
    network.eval()
    for row, (x, length) in enumerate(zip(data.test.x, lengths, strict=True)):
        torch.testing.assert_close(scores[row], network(x[None, : int(length)])[0])


def test_no_examples_give_no_predictions() -> None:
    network = experiment().network
    assert predict(network, Split(torch.empty(0, N, F), torch.empty(0)), batch_size=4).shape == (0, 1, CLASSES)


def test_numbers_keep_their_precision() -> None:
    assert [number("rmse", value) for value in (0.207, 12.3456, 1234.5)] == ["0.2070", "12.35", "1234"]
    assert number("accuracy", 1.0) == "1.000"
