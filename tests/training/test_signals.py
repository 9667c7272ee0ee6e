"""Signals during training and evaluation."""

from __future__ import annotations

import signal
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


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals() as asked, raising_signals():
            signal.raise_signal(signal.SIGINT)
        assert asked == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
