"""Signals during training and evaluation."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import experiment, started

from attnlab.training import train
from attnlab.training.signals import raising_signals, signals


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_evaluation_stops_and_resumes(
    which: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(tmp_path / "run")
    before = signal.signal(which, handler := lambda *_: None)  # nohup and scripts start us with some of them ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(train, "_result", lambda *_: signal.raise_signal(which))
            outcome, result = train.train(experiment(), run)
        assert signal.getsignal(which) == handler
    finally:
        signal.signal(which, before)
    assert (outcome.how, outcome.signal, result) == ("stopped", which, None)
    _, result = train.train(experiment(), run, resume=True)
    assert result is not None
    assert result == run.result()


@pytest.fixture
def sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    """The handler of SIGINT, which a shell may have started pytest with ignored."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("sigint", [signal.SIG_IGN], indirect=True)
def test_ignored_signal_stays_ignored() -> None:
    with signals() as received, raising_signals():
        signal.raise_signal(signal.SIGINT)
    assert received == []
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("sigint", [signal.default_int_handler], indirect=True)
def test_second_ctrl_c_has_its_previous_effect() -> None:
    with signals() as received:
        signal.raise_signal(signal.SIGINT)  # to this thread, now
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
