"""The training loop: results depend on the seed and not on interruptions."""

from __future__ import annotations

import math
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import (
    CLASSES,
    TRAIN,
    F,
    KilledError,
    N,
    experiment,
    last,
    lines,
    refused,
    same,
    settings,
    stop_at,
    task_data,
    trainer,
)

from attnlab.network import Inputs, Network, Outputs
from attnlab.training.checkpoint import load_tensors
from attnlab.training.estimate import estimate
from attnlab.training.loop import SYNC_EVERY, Progress, Trainer
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run
from attnlab.training.schedule import lr_at
from attnlab.utils.errors import UserError


def test_the_auxiliary_loss_of_a_layer_is_trained_too() -> None:
    torch.manual_seed(0)
    options = {"num_heads": 2, "top_k": 2}
    net = Network("dsa", Inputs("vectors", F), Outputs("classes", CLASSES), N, embed_dim=8, layers=2, options=options)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if ".indexer." in name}
    Trainer(net, task_data(), settings()).training_step()
    assert len(before) == 10
    assert not any(torch.equal(net.get_parameter(name), value) for name, value in before.items())


# The same seed, the same weights


@pytest.mark.parametrize("how", ["again", "without a folder", "few checkpoints", "other test data"])
def test_same_seed_gives_the_same_run_bit_for_bit(how: str, done: Path, tmp_path: Path) -> None:
    """Neither the folder, the callback, checkpoints nor the test data change a run."""
    data, seen = task_data(), list[Progress]()
    if how == "other test data":
        data = replace(data, test=data.test._replace(x=torch.full_like(data.test.x, math.nan)))
    made = trainer(None if how == "without a folder" else tmp_path / "run", data)
    if how == "few checkpoints":
        made.checkpoint_seconds = math.inf
    outcome = made.fit(seen.append)
    assert same(made.network, last(done))
    assert seen[-1].step == seen[-1].steps == 23
    assert seen[-1].rate > 0
    about = load_tensors(done / "state.safetensors")[1]
    assert (outcome.how, outcome.best, outcome.best_step) == ("finished", about["best"], about["best_step"])
    if made.run is not None:
        assert same(made.run.load_model(), Run.open(done).load_model())
        assert lines(made.run.path) == lines(done)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.0}])
def test_another_seed_gives_another_result(changes: dict[str, Any]) -> None:
    """Also with the same initial parameters, because the order of the data differs."""
    one, two = trainer(seed=0, **changes), trainer(seed=1, **changes)
    assert not same(one.network, two.network)
    two.network.load_state_dict(one.network.state_dict())
    one.fit()
    two.fit()
    assert not same(one.network, two.network)


@pytest.mark.parametrize(
    ("padded", "changes"),
    [
        (True, {}),
        (False, {"dropout": 0.5}),
        (True, {"patience": 3}),
        (False, {"epochs": 5}),
        (True, {"grad_clip": 0.0, "weight_decay": 0.3, "warmup": 0.5}),
        (True, {"precision": "bfloat16"}),
        (False, {"precision": "float16"}),
    ],
    ids=str,
)
def test_repeatedly_killed_run_is_identical(changes: dict[str, Any], padded: bool, tmp_path: Path) -> None:
    asked = task_data(padded=padded)
    whole = trainer(tmp_path / "whole", asked, **changes)
    expected = whole.fit()
    moments = random.Random(str(changes) + str(padded))
    path, kills = tmp_path / "cut", 0
    while True:
        cut = trainer(path, asked, **changes)
        torch.manual_seed(moments.randrange(1000))  # what a new process has drawn by then
        cut.restore()
        try:
            outcome = cut.fit(stop_at(cut.step + moments.randint(1, 9)))
            break
        except KilledError:
            kills += 1
    assert kills >= (2 if outcome.step > 10 else 0)
    assert same(cut.network, whole.network)
    assert outcome == expected
    assert same(load_tensors(path / "model.safetensors")[0], load_tensors(tmp_path / "whole/model.safetensors")[0])
    assert lines(path) == lines(tmp_path / "whole")


# How long, and how fast


@pytest.mark.parametrize(
    ("changes", "steps", "evaluated"),
    [
        ({"epochs": 3}, 15, list(range(1, 16))),  # ⌈37 / 8⌉ = 5 steps an epoch
        ({"epochs": 11, "evaluate_every": 5}, 55, [5 * i for i in range(1, 12)]),
        ({"steps": 23}, 23, list(range(1, 24))),
        ({"steps": 47, "evaluate_every": 2}, 47, [2 * i for i in range(1, 24)] + [47]),  # and at the end
        ({"steps": 1}, 1, [1]),
        ({"epochs": 1, "batch_size": 1000}, 1, [1]),
    ],
    ids=str,
)
def test_schedule_of_steps_and_evaluations(
    changes: dict[str, Any], steps: int, evaluated: list[int], tmp_path: Path
) -> None:
    made = trainer(tmp_path / "run", **changes)
    outcome = made.fit()
    assert (outcome.how, outcome.step, made.steps) == ("finished", steps, steps)
    assert [line["step"] for line in lines(tmp_path / "run")] == evaluated


def test_epochs_are_permutations() -> None:
    made = trainer(epochs=2)
    orders = []
    for _ in range(2):
        rows = []
        for _ in range(made.epoch_steps):
            rows += made._rows().tolist()
            made.step += 1
        assert sorted(rows) == list(range(TRAIN))
        orders.append(rows)
    assert orders[0] != orders[1]


def test_learning_rate_at_the_corners() -> None:
    corners = {0: 0.2, 9: 2.0, 10: 2.0, 55: 1.0, 100: 0.0}  # not zero at first: that step would be wasted
    assert [lr_at(step, 100, 2.0, 0.1) for step in corners] == pytest.approx(list(corners.values()))
    rates = [lr_at(step, 100, 2.0, 0.1) for step in range(101)]
    assert max(rates) == 2.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_learning_rate_is_positive(steps: int, warmup: float) -> None:
    rates = [lr_at(step, steps, 3.0, warmup) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 3.0


def test_the_optimizer_follows_the_schedule(tmp_path: Path) -> None:
    trainer(tmp_path / "run", steps=20, learning_rate=0.01, warmup=0.25).fit()
    found = [line["learning_rate"] for line in lines(tmp_path / "run")]
    assert found == [lr_at(step, 20, 0.01, 0.25) for step in range(20)]


@pytest.mark.parametrize("grad_clip", [0.0, 1e-4])
def test_gradient_clipping(grad_clip: float) -> None:
    made = trainer(grad_clip=grad_clip, dropout=0.0)
    made.training_step()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in made.parameters if p.grad is not None))
    if grad_clip:
        assert norm == pytest.approx(grad_clip, rel=1e-3)
    else:
        assert norm > 1e-3


def test_it_learns() -> None:
    made = trainer(epochs=60, learning_rate=1e-2, dropout=0.0)
    before, _ = evaluate(made.network, made.task_data.train, made.objective, batch_size=8)
    made.fit()
    after, metric = evaluate(made.network, made.task_data.train, made.objective, batch_size=8)
    assert after < before / 4
    assert metric > 0.9


# Stopping early, stopping badly, being stopped


@pytest.mark.parametrize(
    ("metrics", "changes", "how", "step", "best", "best_step"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.1, 0.9], {"patience": 3}, "early", 5, 0.3, 2),
        ([0.3, 0.2, 0.3, 0.2, 0.9], {"patience": 3}, "early", 4, 0.3, 3),  # the later of two equal networks
        ([0.3] * 23, {"patience": 5}, "early", 6, 0.3, 6),  # a plateau is no improvement
        ([0.3, 0.2, 0.2], {"patience": 2, "steps": 3}, "finished", 3, 0.3, 1),
    ],
)
def test_patience_counts_evaluations_without_improvement(
    metrics: list[float], changes: dict[str, Any], how: str, step: int, best: float, best_step: int,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    left = iter(metrics)
    monkeypatch.setattr("attnlab.training.loop.evaluate", lambda *_, **__: (1.0, next(left)))
    outcome = trainer(tmp_path / "run", **changes).fit()
    assert (outcome.how, outcome.step, outcome.best, outcome.best_step) == (how, step, best, best_step)
    assert load_tensors(tmp_path / "run/model.safetensors")[1]["step"] == best_step
    assert trainer(tmp_path / "run", **changes).fit() == outcome, "a run that has ended does not continue"


@pytest.mark.parametrize("evaluate_every", [1, SYNC_EVERY * 3])
def test_nonfinite_loss_stops_the_run_and_names_the_step(evaluate_every: int, tmp_path: Path) -> None:
    data = task_data()
    data.train.x[29] = math.nan
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0)).tolist()
    step = order.index(29) // 8 + 1
    with pytest.raises(UserError, match=rf"the loss became nan at step {step}\b.*try a lower --learning_rate \(0\.001"):
        trainer(tmp_path / "run", data, epochs=30, evaluate_every=evaluate_every).fit()


@pytest.mark.parametrize(
    ("factor", "better", "message"),
    [
        (math.nan, False, "the loss became nan"),
        (1.0, False, "a parameter became NaN or infinite"),
        (1.0, True, "a parameter became NaN or infinite"),
    ],
)
def test_last_good_checkpoint_is_kept(
    factor: float, better: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the loss is finite: it is computed before the step, which may have made the parameters NaN."""
    made = trainer(tmp_path / "run")
    training_step = made.training_step

    def diverging() -> torch.Tensor:
        loss = training_step()
        if made.step < 9:
            return loss
        with torch.no_grad():
            made.parameters[0].fill_(math.nan)
        return loss * factor

    monkeypatch.setattr(made, "training_step", diverging)
    monkeypatch.setattr(Objective, "better", lambda *_: better or made.step < 9)
    refused(f"{message} at step 9; the best network (step 8) is kept in {tmp_path / 'run'}; try a lower", made.fit)
    for name, steps in (("model", (8,)), ("state", (7, 8))):
        tensors, about = load_tensors(tmp_path / f"run/{name}.safetensors")
        assert about["step"] in steps
        assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_the_resumed_run_is_identical(which: signal.Signals, done: Path, tmp_path: Path) -> None:
    before = signal.getsignal(which)
    cut = trainer(tmp_path / "cut")
    cut.checkpoint_seconds = math.inf
    outcome = cut.fit(lambda seen: signal.raise_signal(which) if seen.step == 6 else None)
    assert (outcome.how, outcome.signal) == ("stopped", which)
    assert 6 <= outcome.step <= 8
    assert signal.getsignal(which) is before
    again = trainer(tmp_path / "cut")
    assert again.step == outcome.step
    assert again.fit().how == "finished"
    assert same(again.network, last(done))


def test_signal_at_the_last_step_is_ignored(tmp_path: Path) -> None:
    outcome = trainer(tmp_path / "run").fit(
        lambda seen: signal.raise_signal(signal.SIGINT) if seen.step == seen.steps else None
    )
    assert outcome.how == "finished"


# What must leave no trace


def test_evaluation_does_not_change_the_network_or_the_random_state() -> None:
    made = trainer(dropout=0.5)
    before = {name: t.clone() for name, t in made.network.state_dict().items()}
    state = torch.get_rng_state()
    first = evaluate(made.network, made.task_data.validation, made.objective, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(made.network, before)
    assert made.network.training
    assert evaluate(made.network, made.task_data.validation, made.objective, batch_size=4) == first, "dropout is off"
    made.network.eval()
    evaluate(made.network, made.task_data.validation, made.objective, batch_size=4)
    assert not made.network.training


def test_estimate_changes_nothing(tmp_path: Path) -> None:
    ready = experiment(dropout=0.5)
    before = {name: t.clone() for name, t in ready.network.state_dict().items()}
    data = [None if t is None else t.clone() for t in ready.task_data.train]
    flat, state = ready.settings.flat(), torch.get_rng_state()
    expected = estimate(ready.network, ready.task_data, ready.settings)
    assert min(expected.training, expected.evaluation, expected.result) > 0
    assert expected.total == expected.training + expected.evaluation + expected.result
    assert same(ready.network, before)
    assert all(p.grad is None for p in ready.network.parameters())
    assert ready.network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert ready.settings.flat() == flat
    for one, two in zip(data, ready.task_data.train, strict=True):
        assert one is None or (two is not None and torch.equal(one, two))


def test_logged_training_loss_is_the_mean_since_the_last_evaluation(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", steps=50, evaluate_every=2)
    losses, training_step = [], made.training_step

    def noting() -> torch.Tensor:
        losses.append(float(loss := training_step()))
        return loss

    made.training_step = noting  # type: ignore[method-assign]
    made.fit()
    found = [line["train_loss"] for line in lines(tmp_path / "run")]
    assert found == [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
