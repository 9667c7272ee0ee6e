"""``pytest tests/models --record`` writes the differences that the parity tests measure into models/NAME/trust.json.

A parity module names in ``ORACLES`` what its tests compare with: the start of their names, the package and its layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab.catalog import registry
from attnlab.docs import trust

TIGHT = 1e-10
LARGEST: dict[tuple[str, str, str], dict[tuple[torch.dtype, bool], float]] = defaultdict(dict)
"""The largest difference by mechanism, package and oracle, for each dtype and whether the tolerance was tight."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the measured differences into models/NAME/trust.json")


@pytest.fixture(autouse=True)
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison of a parity test keeps its difference."""
    oracles: dict[str, tuple[str, str]] = getattr(request.module, "ORACLES", {})
    starts = [start for start in oracles if request.function.__name__.startswith(start)]
    if not starts:
        return
    name = request.module.__name__.removeprefix("test_").removesuffix("_parity")
    differences, assert_close = LARGEST[name, *oracles[max(starts, key=len)]], torch.testing.assert_close

    def compare(actual: Tensor, expected: Tensor, **options: Any) -> None:
        assert_close(actual, expected, **options)
        key = (actual.dtype, options.get("atol", 1.0) <= TIGHT)
        difference = (actual.detach() - expected.detach()).abs().max().item() if actual.numel() else 0.0
        differences[key] = max(differences.get(key, 0.0), difference)

    monkeypatch.setattr(torch.testing, "assert_close", compare)


@pytest.fixture(scope="session", autouse=True)
def recorded(request: pytest.FixtureRequest) -> Iterator[None]:
    """With ``--record``, the differences are written at the end."""
    record = request.config.getoption("--record", default=False)
    if record and hasattr(request.config, "workerinput"):
        pytest.exit("--record needs all comparisons in one process; leave out -n", returncode=2)
    yield
    if not record or request.session.testsfailed:
        return
    rows: dict[str, list[trust.Parity]] = defaultdict(list)
    for (name, package, oracle), differences in sorted(LARGEST.items()):
        double = differences.get((torch.float64, True), differences.get((torch.float64, False)))
        single = differences.get((torch.float32, False))
        rounded = [None if value is None else float(f"{value:.1g}") for value in (single, double)]
        rows[name].append(trust.Parity(oracle, package, version(package).partition("+")[0], *rounded))
    for name, parity in rows.items():
        trust.record(registry.folder() / name, parity=parity)
