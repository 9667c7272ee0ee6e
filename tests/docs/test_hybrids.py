"""The table of docs/hybrids.md: its measurement resumes, and its numbers are those of the recorded runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attnlab.catalog import pattern
from attnlab.docs import hybrids


def run(ratio: str, seed: int, accuracy: float) -> dict[str, Any]:
    memory = {"bytes_per_token": 256, "bytes_per_sequence": 3 * 1024}
    return {"ratio": ratio, "seed": seed, "steps": 7, "accuracy": accuracy, **memory}


def test_the_patterns_have_their_ratios() -> None:
    for ratio, model in hybrids.PATTERNS.items():
        names = pattern.layer_names(model, hybrids.LAYERS)
        full, recurrent = names.count("multihead"), names.count("gateddeltanet")
        one, _, other = ratio.partition(":")
        assert full + recurrent == hybrids.LAYERS
        assert full * int(other) == recurrent * int(one)


def test_interval() -> None:
    """Scores 0.5, 0.6 and 0.7 have the deviation 0.1; t is 4.303 with two degrees of freedom."""
    assert hybrids.interval([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.6 - 0.24841, 0.6 + 0.24841), abs=1e-4)
    assert hybrids.interval([0.2, 1.0]) == (0.6, 0.0, 1.0)
    assert hybrids.interval([0.4]) == (0.4, 0.0, 1.0)


def test_quantiles() -> None:
    from scipy.stats import t

    for degrees, quantile in enumerate(hybrids.QUANTILES, 1):
        assert quantile == pytest.approx(t.ppf(0.975, degrees), abs=1e-4)


def test_table(tmp_path: Path) -> None:
    results = [run("8:0", 0, 0.9), run("1:7", 0, 0.5), run("1:7", 1, 0.5)]
    assert hybrids.table(results).splitlines()[2:] == [
        "| 1:7 | `7*gateddeltanet,multihead` | 0.500 (0.500 to 0.500) | 256 | 3,072 | 1,027 KiB |",
        "| 8:0 | `multihead` | 0.900 (one network) | 256 | 3,072 | 1,027 KiB |",
    ]
    file = tmp_path / "results.json"
    assert "Not measured yet" in hybrids.recorded(file)
    file.write_text(json.dumps(results))
    note = "2 networks per row at most, 7 training steps each."
    assert hybrids.recorded(file) == f"{hybrids.table(results)}\n\n{note}"


def test_an_interrupted_measurement_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, calls = tmp_path / "results.json", []

    def measure(ratio: str, seed: int, steps: int) -> dict[str, Any]:
        calls.append((ratio, seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {**run(ratio, seed, 0.5), "steps": steps}

    monkeypatch.setattr(hybrids, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["hybrids", "--seeds", "1", "--output", str(file)])
    with pytest.raises(KeyboardInterrupt):
        hybrids.main()
    assert len(json.loads(file.read_text())) == 2
    hybrids.main()
    assert calls[2:] == [(ratio, 0) for ratio in list(hybrids.PATTERNS)[2:3] + list(hybrids.PATTERNS)[2:]]
    assert "| 1:7 |" in capsys.readouterr().out
    hybrids.main()
    assert len(calls) == 6, "everything is recorded"


@pytest.mark.slow
def test_measured_memory() -> None:
    """Per layer of attention 2 x 32 floats per token; a state has 8 heads of 4 x 4, and three tokens of 96 features."""
    result = hybrids.measure("1:7", 0, steps=1)
    assert result["bytes_per_token"] == 2 * 32 * 4
    assert result["bytes_per_sequence"] == 7 * (8 * 4 * 4 + 3 * 96) * 4
    assert 0 <= result["accuracy"] < 0.3
