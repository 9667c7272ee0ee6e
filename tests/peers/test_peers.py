"""The layers of others: the page is what was found, and each finding is shown by the package alone."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

from attnlab.checks import Report, Row, every_promise
from attnlab.cli import check
from peers import page, results
from peers.catalog import PEERS
from peers.peer import Layer, Peer
from peers.results import REPRODUCTIONS, OutOfStep, outcomes

FILES = sorted(REPRODUCTIONS.glob("*.py"))


def owner(file: Path) -> Peer:
    """The peer whose result a reproduction stands in."""
    return next(peer for peer in PEERS if (found := results.read(peer.package)) and file.stem in found.said)


def skip_unless_as_recorded(peer: Peer) -> results.Result:
    recorded = results.read(peer.package)
    assert recorded is not None
    if peer.installed != recorded.version:
        pytest.skip(f"needs {peer.package}=={recorded.version}, here is {peer.installed}")
    return recorded


# What is kept in this repository


def test_the_page_is_what_the_results_make() -> None:
    found = {peer.package: result for peer in PEERS if (result := results.read(peer.package))}
    assert page.PAGE.read_text("utf-8") == page.page(found), "make it anew with: python -m peers page"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_what_was_found_is_of_the_layers_and_promises_there_are(peer: Peer) -> None:
    found = results.read(peer.package)
    assert found is not None
    fast = [name for name, promise in every_promise().items() if not promise.slow and name not in results.NOT_YET]
    assert {name: [o.promise for o in layer] for name, layer in found.layers.items()} == {
        layer.name: fast for layer in peer.layers
    }, f"run it anew: python -m peers {peer.package}"
    for layer in peer.layers:
        broken = {o.promise: o.why for o in found.layers[layer.name] if o.outcome == "broken"}
        assert broken == layer.broken


def test_every_reproduction_shows_a_finding() -> None:
    said = [name for peer in PEERS if (found := results.read(peer.package)) for name in found.said]
    assert sorted(said) == [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproduction_is_ten_lines_of_the_package_alone(file: Path) -> None:
    text = file.read_text("utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 10
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= {"torch", owner(file).module}


# Where a peer is installed


@pytest.mark.filterwarnings("ignore")  # theirs to mend
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproduction_still_shows_it(file: Path) -> None:
    skip_unless_as_recorded(owner(file))
    with pytest.raises(AssertionError):
        runpy.run_path(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_the_suite_finds_what_is_recorded(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = skip_unless_as_recorded(peer)
    monkeypatch.setattr(results, "reproduce", lambda name: recorded.said[name])
    assert results.run(peer).layers == recorded.layers


def test_the_command_beside_a_row_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch = next(peer for peer in PEERS if peer.package == "torch")
    command = torch.command(torch.layers[1])
    assert command.startswith("attnlab check peers.adapters.pytorch:PaddedMultiheadAttention --fast --claims ")
    assert check.run([*command.split()[2:], "--only", "padding is never heard"]) == 0
    assert "1 pass" in capsys.readouterr().out


def test_a_command_gives_the_options_of_a_layer() -> None:
    peer = next(peer for peer in PEERS if peer.package == "x-transformers")
    assert peer.command(Layer("Attention", {"flash": True}, claims=("causal",))) == (
        "attnlab check peers.adapters.x_transformers:Attention --fast --args flash=True --claims causal"
    )


# What a report means

FAILED = Report("it", (Row("keeps the shape", "fail", detail="wrong"), Row("keeps the dtype", "pass")))


def test_a_failure_is_broken_where_there_is_a_reproduction_and_else_not_claimed_for_a_reason() -> None:
    for known, outcome in (
        ({"broken": {"keeps the shape": "why"}}, "broken"),
        ({"unclaimed": {"keeps the shape": "why"}}, "unclaimed"),
    ):
        first, second = outcomes(Layer("It", **known), FAILED)
        assert (first.outcome, first.why, second.outcome) == (outcome, "why", "kept")
    nothing = Report("it", (Row("empty rows give zeros", "fail"), Row("keeps the dtype", "not claimed", detail="no")))
    assert [found.outcome for found in outcomes(Layer("It"), nothing)] == ["unclaimed", "not asked"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer("It"), "It fails in 'keeps the shape' .wrong.; say in peers/catalog.py why"),
        (
            Layer("It", broken={"keeps the shape": "x", "keeps the dtype": "y"}),
            "It does not fail in 'keeps the dtype' any longer; take it out of peers/catalog.py",
        ),
    ],
)
def test_a_catalog_that_does_not_agree_is_refused(layer: Layer, message: str) -> None:
    with pytest.raises(OutOfStep, match=message):
        outcomes(layer, FAILED)


@pytest.mark.parametrize(("text", "message"), [("", "it ends without an error"), ("1 / 0", "ZeroDivisionError")])
def test_a_reproduction_that_shows_nothing_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.py").write_text(text, "utf-8")
    monkeypatch.setattr(results, "REPRODUCTIONS", tmp_path)
    with pytest.raises(OutOfStep, match=message):
        results.reproduce("it")
