"""What the parity tests find is recorded: ``python -m pytest tests/models --record`` writes it into trust.json.

A module says in ``ORACLES`` which of its tests hold a mechanism against what: how their names begin, and the package
and the oracle in it.
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
FOUND: dict[tuple[str, str, str], dict[tuple[torch.dtype, bool], float]] = defaultdict(dict)
"""The worst difference, by mechanism, package and oracle: for each precision, and whether it had to be tight."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write what was found into models/NAME/trust.json")


@pytest.fixture(autouse=True)
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison notes how far apart both are."""
    known = getattr(request.module, "ORACLES", {})  # of the parity tests alone
    oracles = {start: of for start, of in known.items() if request.function.__name__.startswith(start)}
    if not oracles:
        return
    key = (request.module.__name__.removeprefix("test_").removesuffix("_parity"), *oracles[max(oracles, key=len)])
    plain = torch.testing.assert_close

    def compared(found: Tensor, wanted: Tensor, **given: Any) -> None:
        plain(found, wanted, **given)
        which = (found.dtype, given.get("atol", 1.0) <= TIGHT)
        worst = (found.detach() - wanted.detach()).abs().max().item() if found.numel() else 0.0
        FOUND[key][which] = max(FOUND[key].get(which, 0.0), worst)

    monkeypatch.setattr(torch.testing, "assert_close", compared)


@pytest.fixture(scope="session", autouse=True)
def kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """At the end, what was found goes where it is asked for."""
    asked = request.config.getoption("--record", default=False)
    if asked and hasattr(request.config, "workerinput"):
        pytest.exit("--record needs all comparisons in one process; leave out -n", returncode=2)
    yield
    if not asked or request.session.testsfailed:
        return
    rows: dict[str, list[trust.Parity]] = defaultdict(list)
    for (name, package, oracle), worst in sorted(FOUND.items()):
        double = worst.get((torch.float64, True), worst.get((torch.float64, False)))
        single = worst.get((torch.float32, False))
        rounded = [None if value is None else float(f"{value:.1g}") for value in (single, double)]
        rows[name].append(trust.Parity(oracle, package, version(package).partition("+")[0], *rounded))
    for name, found in rows.items():
        trust.record(registry.folder() / name, parity=found)
