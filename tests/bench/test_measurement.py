"""Groups of rows: which models are slower, what is not supported, and that decoding repeats one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_clock import Clock
from torch import Tensor, nn

from attnlab.bench import measure
from attnlab.bench.measurement import Group, Row
from attnlab.bench.timing import TimingConfig
from attnlab.bench.workloads import Layers, Phase, workload
from attnlab.catalog import registry
from attnlab.network import Network

TINY = TimingConfig(min_sample=0.0, budget=0.0, min_rounds=3, max_rounds=3)


class Slow(nn.Module):
    """Takes ``seconds`` of a fake clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.clock.pass_time(self.seconds)
        return x * self.weight


class Fails(Slow):
    """Raises from a call on."""

    def __init__(self, clock: Clock, error: Exception, calls: int = 0) -> None:
        super().__init__(clock, 1.0)
        self.error, self.left = error, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().forward(x)


def layers(*names: str, **options: Any) -> Layers:
    torch.manual_seed(0)
    return Layers([registry.load(name)(24, **{"causal": True, "num_heads": 3, **options}) for name in names])


def measured(models: dict[str, nn.Module], x: Tensor, *phases: Any, **options: Any) -> list[Group]:
    return measure(models, x, phases=phases, memory=False, **{"timing": TINY, **options})


def rows(group: Group) -> dict[str, Row]:
    return {row.model: row for row in group.rows}


def test_a_planted_slow_layer_is_slower_by_its_factor() -> None:
    clock = Clock()
    timing = TimingConfig(min_sample=0.0, budget=0.0, min_rounds=5, max_rounds=5, clock=clock)
    models: dict[str, nn.Module] = {"first": Slow(clock, 0.5), "slow": Slow(clock, 1.5)}
    for group in measured(models, torch.ones(2, 7, 3), "training", "prefill", timing=timing):
        first, slow = group.rows
        assert (first.seconds, slow.seconds) == pytest.approx((0.5, 1.5))
        assert slow.ratio is not None
        assert (slow.ratio.lower, slow.ratio.upper) == pytest.approx((3.0, 3.0))
        assert slow.tokens_per_second == pytest.approx(2 * 7 / 1.5)
        assert group.control is not None
        assert group.control.median == pytest.approx(1.0)
        assert (group.length, group.batch_size, group.baseline, first.parameters) == (7, 2, "first", 1)


@pytest.mark.parametrize("names", ["multihead", "slidingwindow", "latent", "gateddeltanet,multihead", "rwkv7"])
def test_decoding_repeats_the_last_token_of_the_full_pass(names: str) -> None:
    model = layers(*names.split(","), **({"window_size": 5} if names == "slidingwindow" else {}))
    x = torch.randn(2, 67, 24)
    expected = workload(model, x, "prefill")()[:, -1:]
    step = workload(model, x, "decode")
    for _ in range(3):
        torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-5)
    assert step.cache_bytes == sum(cache.bytes for cache in filled(model, x))


def filled(model: Layers, x: Tensor) -> Any:
    caches = [layer.make_cache(67, window=layer.cache_window) for layer in model.mechanisms()]
    with torch.inference_mode():
        model(x[:, :-2], caches=caches)
        model(x[:, -2:-1], caches=caches)
    return caches


def test_a_network_is_measured_as_layers_are() -> None:
    network = Network("multihead", ("tokens", 5), ("tokens", 5), 13, 24, 1, {"num_heads": 3}, causal=True)
    x = torch.randint(5, (2, 13))
    for group in measured({"one": network}, x, "training", "prefill", "decode"):
        (row,) = group.rows
        assert row.seconds is not None, row
        assert row.tokens_per_second == pytest.approx((2 if group.phase == "decode" else 26) / row.seconds)
        assert group.length == (12 if group.phase == "decode" else 13)
    with torch.no_grad():
        expected = network.eval()(x)[:, -1:]
        torch.testing.assert_close(workload(network, x, "decode")(), expected)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: layers("nystrom", causal=False), "NystromAttention does not support cache; it supports "),
        (lambda: layers("multihead", causal=False), "MultiAttention is not causal here, and only causal layers decode"),
        (
            lambda: Network("selfhead", ("vectors", 24), ("classes", 5), 13, causal=True),
            "the network has one output per sequence, not one per token",
        ),
        (lambda: nn.Linear(24, 24), "Linear has no cache that is known here"),
        (lambda: Fails(Clock(), ValueError("one\ntwo")), "Fails has no cache that is known here"),
    ],
)
def test_a_model_that_does_not_decode_is_a_row_with_the_reason(model: Callable[[], nn.Module], reason: str) -> None:
    (group,) = measured({"without": model(), "with": layers("multihead")}, torch.randn(2, 7, 24), "decode")
    assert rows(group)["without"].reason.startswith(reason)
    assert (rows(group)["without"].seconds, rows(group)["without"].ratio) == (None, None)
    assert group.baseline == "with", "the ratios refer to the first that is measured"
    assert rows(group)["with"].seconds is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too long\nby far"), "too long"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("can't allocate memory: you tried to allocate 5 bytes"), "needs more memory than there is ("),
        (MemoryError(), "needs more memory than there is ("),
    ],
)
@pytest.mark.parametrize("calls", [0, 3])
def test_an_error_is_a_row_with_the_reason(error: Exception, reason: str, calls: int) -> None:
    models = {"fails": Fails(Clock(), error, calls), "works": Slow(Clock(), 1.0)}
    (group,) = measured(dict(models), torch.ones(1, 2, 3), "prefill")
    assert rows(group)["fails"].reason.startswith(reason)
    assert rows(group)["fails"].seconds is None
    if not calls:  # an error during the rounds ends those of all
        assert rows(group)["works"].seconds is not None


@pytest.mark.parametrize(("phase", "mode"), [("training", True), ("prefill", False), ("decode", False)])
def test_only_training_runs_in_training_mode(phase: Phase, mode: bool) -> None:
    model, x = layers("multihead", dropout=0.5).train(not mode), torch.randn(2, 7, 24)
    workload(model, x, phase)
    assert {module.training for module in model.modules()} == {mode}


def test_models_keep_their_mode_and_have_no_gradients() -> None:
    model, x = layers("multihead").eval(), torch.randn(2, 7, 24, requires_grad=True)
    measured({"one": model}, x, "training")
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in [*model.parameters(), x])


def test_layers_after_the_first_have_a_residual_connection() -> None:
    model, x = layers("multihead", "sinks"), torch.randn(2, 7, 24)
    first, second = model.mechanisms()
    torch.testing.assert_close(model(x), first(x) + second(first(x)))
