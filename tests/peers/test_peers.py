"""The suite on other libraries: the page shows the recorded results, and each failure has a reproduction."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

from attnlab.checks import Report, Row, all_checks
from attnlab.cli import main
from peers import page, results
from peers.catalog import PEERS
from peers.peer import Layer, Peer
from peers.results import REPRODUCTIONS, CatalogMismatchError, outcomes

FILES = sorted(REPRODUCTIONS.glob("*.py"))
RECORDED = page.recorded()


def owner(file: Path) -> Peer:
    """The package whose result names a reproduction."""
    return next(peer for peer in PEERS if file.stem in RECORDED[peer.package].messages)


def skip_unless_as_recorded(peer: Peer) -> results.Result:
    recorded = RECORDED[peer.package]
    if peer.installed != recorded.version:
        pytest.skip(f"needs {peer.package}=={recorded.version}, found {peer.installed}")
    return recorded


# The recorded results


def test_page_is_up_to_date() -> None:
    assert page.PAGE.read_text("utf-8") == page.page(RECORDED), "generate it with: python -m peers page"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_results_cover_all_layers_and_checks(peer: Peer) -> None:
    recorded = RECORDED[peer.package]
    fast = [name for name, check in all_checks().items() if not check.slow and name not in results.NOT_RECORDED]
    assert {name: [o.check for o in layer] for name, layer in recorded.layers.items()} == {
        layer.name: fast for layer in peer.layers
    }, f"run it again: python -m peers {peer.package}"
    for layer in peer.layers:
        failing = {o.check: o.reason for o in recorded.layers[layer.name] if o.outcome == "fail"}
        assert failing == layer.failing


def test_every_reproduction_is_recorded() -> None:
    assert sorted(name for result in RECORDED.values() for name in result.messages) == [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_reproduction_has_ten_lines_and_uses_the_package_alone(file: Path) -> None:
    text = file.read_text("utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 10
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= {"torch", owner(file).module}


# With the package installed


@pytest.mark.filterwarnings("ignore")  # of the package
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_reproduction_fails(file: Path) -> None:
    skip_unless_as_recorded(owner(file))
    with pytest.raises(AssertionError):
        runpy.run_path(str(file))


LARGEST = "x-transformers"
"""The package with the most layers, whose suite takes as long as those of all others."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(peer, marks=[pytest.mark.exhaustive] if peer.package == LARGEST else [], id=peer.package)
        for peer in PEERS
    ],
)
def test_outcomes_are_as_recorded(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = skip_unless_as_recorded(peer)
    monkeypatch.setattr(results, "reproduce", lambda name: recorded.messages[name])
    assert results.run(peer).layers == recorded.layers


def test_command_of_a_row_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch = next(peer for peer in PEERS if peer.package == "torch")
    command = torch.command(torch.layers[1])
    assert command.startswith("attnlab check peers.adapters.pytorch:PaddedMultiheadAttention --fast --capabilities ")
    assert main([*command.split()[1:], "--only", "no_padding_leakage"]) == 0
    assert "1 pass" in capsys.readouterr().out


def test_command_includes_the_options_of_a_layer() -> None:
    peer = next(peer for peer in PEERS if peer.package == "x-transformers")
    assert peer.command(Layer("Attention", {"flash": True}, capabilities=("causal",))) == (
        "attnlab check peers.adapters.x_transformers:Attention --fast --args flash=True --capabilities causal"
    )


# Outcomes

FAILED = Report("it", (Row("output_shape", "fail", detail="wrong"), Row("output_dtype", "pass")))


def test_failure_has_a_reproduction_or_a_reason() -> None:
    for known, outcome in (
        ({"failing": {"output_shape": "why"}}, "fail"),
        ({"undocumented": {"output_shape": "why"}}, "undocumented"),
    ):
        first, second = outcomes(Layer("It", **known), FAILED)
        assert (first.outcome, first.reason, second.outcome) == (outcome, "why", "pass")
    nothing = Report("it", (Row("fully_masked_rows_are_zero", "fail"), Row("output_dtype", "not applicable")))
    assert [row.outcome for row in outcomes(Layer("It"), nothing)] == ["undocumented", "not applicable"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer("It"), "It fails output_shape .wrong.; add the reason to peers/catalog.py"),
        (
            Layer("It", failing={"output_shape": "x", "output_dtype": "y"}),
            "It no longer fails output_dtype; remove it from peers/catalog.py",
        ),
    ],
)
def test_catalog_mismatch_raises(layer: Layer, message: str) -> None:
    with pytest.raises(CatalogMismatchError, match=message):
        outcomes(layer, FAILED)


@pytest.mark.parametrize(("text", "message"), [("", "it ends without an error"), ("1 / 0", "ZeroDivisionError")])
def test_reproduction_without_failure_raises(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.py").write_text(text, "utf-8")
    monkeypatch.setattr(results, "REPRODUCTIONS", tmp_path)
    with pytest.raises(CatalogMismatchError, match=message):
        results.reproduce("it")
