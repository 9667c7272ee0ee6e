"""The command `attnlab check`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from attnlab.catalog import registry
from attnlab.checks import all_checks
from attnlab.cli import main
from attnlab.nn.attention import Attention
from attnlab.utils.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(HERE)])
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def two_mechanisms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda: ["multihead", "selfhead"])


def test_one_table_per_mechanism(two_mechanisms: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--only", "output_shape", "cross_attention"]) == 0
    out = capsys.readouterr().out
    assert "multihead\ncheck" in out
    assert "\nselfhead\ncheck" in out
    assert "not applicable  cross_attention: it takes no context" in out
    assert "selfhead: 1 pass, 0 fail, 1 not applicable, " in out


def test_failure_exits_with_1_and_is_located(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "third_party:Tutorial", "--only", "no_future_leakage_with_mask", "output_shape"]) == 1
    out = capsys.readouterr().out
    assert re.search("no_future_leakage_with_mask +fail ", out)
    assert "output 0 depends on token 2 of item 1" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_narrow_terminal_without_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    longest = max(all_checks(), key=len)
    names = [longest, "output_shape", "cross_attention", "cache_matches_full_pass", "attn_bias_broadcasts"]
    assert main(["check", "selfhead", "--only", *names]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert "\x1b" not in out


def test_json_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "third_party:Correct", "--only", "output_shape", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["passed"]) == ("third_party:Correct", True)
    assert found["checks"][0]["check"] == "output_shape"


def test_options_of_the_constructor(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--args", "embed_dim=16", "num_heads=4", "bias=False"]
    assert main(["check", "multihead", *options, "--only", "output_shape"]) == 0
    assert main(["check", "third_party:Correct", "--args", "dim=8", "--only", "output_shape"]) == 0


def test_old_names_are_accepted_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "selfhead", "--only", "keeps the shape"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"output_shape +pass +0 \(at most 0\)", captured.out)
    assert captured.err.startswith("note: the check 'keeps the shape' is now output_shape")
    former = ["--call", "third_party:call_hugging_face_style", "--claims", "padding", "--only", "no_padding_leakage"]
    assert main(["check", "third_party:HuggingFaceStyle", *former]) == 0


def test_call_and_capabilities(capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--call", "third_party:call_hugging_face_style", "--capabilities", "padding"]
    how += ["--only", "no_padding_leakage", "no_masked_key_leakage"]
    assert main(["check", "third_party:HuggingFaceStyle", *how]) == 0
    assert "it does not take every mask" in " ".join(capsys.readouterr().out.split())


def test_other_mechanisms_are_checked_if_one_cannot_be_imported(
    two_mechanisms: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = registry.load

    def broken(name: str) -> type[Attention]:
        if name == "multihead":
            raise UserError("models/multihead cannot be imported: SyntaxError: invalid syntax")
        return load(name)

    monkeypatch.setattr(registry, "load", broken)
    assert main(["check", "--only", "output_shape"]) == 1
    captured = capsys.readouterr()
    assert "selfhead: 1 pass" in captured.out
    assert "multihead cannot be checked: models/multihead cannot be imported: SyntaxError" in captured.err
    assert main(["check", "--only", "output_shape", "--json"]) == 1
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["multihead"]["passed"] is False
    assert "SyntaxError" in found["multihead"]["error"]
    assert main(["check", "multihead"]) == 2


@pytest.mark.parametrize("positions", ["none", "rotary(rotary_fraction=0.5)", "alibi"])
def test_positions_are_options(positions: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--args", f"positions={positions}", "--only", "matches_reference_outputs", "--json"]
    assert main(["check", "multihead", *asked]) == 0
    assert json.loads(capsys.readouterr().out)[0]["passed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multihead", "--args", "bias=none"], "--args takes Python literals: bias=None"),
        (["multihead", "--args", "positions=rotary("], "positions is none, rotary, alibi or t5, or one of these with"),
        (["multihead", "--args", "positions=None"], "positions must be a str or an attnlab.positions.Positions"),
        (["multihed"], "unknown model 'multihed'; did you mean multihead?"),
        (["third_party.Correct"], "'third_party.Correct' names no class; write MODULE:CLASS"),
        (["third_party:"], "'third_party:' is not MODULE:CLASS"),
        (["third_party.py:Correct"], "give the module, not its file: third_party:Correct"),
        (["third_part:Correct"], "there is no module third_part, neither in"),
        (["third_party:Correc"], "unknown name in third_party 'Correc'; did you mean Correct?"),
        (["third_party:number"], "expected a layer, or a class or function that makes one, got 3"),
        (["third_party:NeedsConfig"], "NeedsConfig cannot be built: TypeError"),
        (["third_party:layer"], "the width of the tokens of Correct is not known; pass embed_dim"),
        (["third_party:layer", "--args", "dim=3"], "third_party:layer is no class or function, so it takes no --args"),
        (["third_party:Correct", "--args", "dim"], "--args takes NAME=VALUE, such as embed_dim=64, not 'dim'"),
        (["third_party:Correct", "--args", "causal=true"], "--args takes Python literals: causal=True"),
        (["third_party:Correct", "--args", "colour=red"], "unexpected keyword argument 'colour'"),
        (["--args", "num_heads=4"], "--args needs one layer; name it"),
        (["multihead", "--fsat"], "unknown option --fsat; did you mean --fast?"),
        (["multihead", "--only", "no_dropout_in_evl"], "did you mean no_dropout_in_eval?"),
    ],
)
def test_mistake_is_one_line_and_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import not_there_at_all", "No module named 'not_there_at_all'"), ("1 / 0", "ZeroDivisionError")],
)
def test_import_error_is_reported(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing.py").write_text(code, encoding="utf-8")
    assert main(["check", "failing:X"]) == 2
    assert "failing cannot be imported: " in (err := capsys.readouterr().err)
    assert reason in err
