"""docs/peers.md says what was found, and every failure in it is shown by the peer alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from attnlab.checks import check_attention, every_promise
from attnlab.checks.claims import CLAIMS
from peers.__main__ import main
from peers.adapters import PEERS, D
from peers.page import COMMON, FOUND, PAGE, SHOWN, write

SCRIPTS = sorted(SHOWN.glob("*.py"))
LINES = 10


def installed(package: str, found: str) -> bool:
    try:
        return version(package) == found
    except PackageNotFoundError:
        return False


def test_the_page_says_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == write()
    assert set(json.loads(FOUND.read_text(encoding="utf-8"))) == set(PEERS)


def test_every_promise_and_claim_that_is_named_exists() -> None:
    for peer in PEERS.values():
        assert peer.claims <= set(CLAIMS)
        assert {*peer.unfair, *COMMON} <= set(every_promise())


@pytest.mark.parametrize("name", PEERS)
def test_what_is_broken_is_shown_and_nothing_else(name: str) -> None:
    outcomes = json.loads(FOUND.read_text(encoding="utf-8"))[name]["outcomes"]
    assert ("fail" in outcomes.values()) == bool(PEERS[name].failures)
    assert {f"{file}.py" for file in PEERS[name].failures} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_reproduction_is_short_and_of_the_peer_alone(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert "attnlab" not in code
    body = code.partition('"""\n')[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= LINES
    assert ast.get_docstring(ast.parse(code))


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_reproduction_shows_the_failure(path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", path], capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("the peer is in the extra peers")
    assert done.stdout.split()[-1:] == ["True"], done.stdout + done.stderr


@pytest.mark.parametrize("name", ["torch", "torch-weights", "bert"])
def test_the_suite_finds_today_what_the_page_says(name: str) -> None:
    peer, row = PEERS[name], json.loads(FOUND.read_text(encoding="utf-8"))[name]
    if not installed(peer.package, row["version"]):
        pytest.skip(f"found with {peer.package} {row['version']}")
    only = [promise for promise in COMMON if promise not in peer.unfair]
    report = check_attention(peer.make, embed_dim=D, call=peer.call, claims=peer.claims, only=only, raises=False)
    assert {own.promise: own.outcome for own in report.rows} == row["outcomes"]


def test_an_unknown_peer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keros"]) == 2
    assert capsys.readouterr().err == "error: unknown peer 'keros'; did you mean keras?\n"
