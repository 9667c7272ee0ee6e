"""`attnlab check`, as a stranger meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnlab.catalog import registry
from attnlab.cli import main
from attnlab.nn.attention import Attention
from attnlab.utils.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(HERE)])
    monkeypatch.setenv("COLUMNS", "80")


def test_a_table_a_mechanism(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--only", "keeps the shape", "context may be another sequence"]) == 0
    out = capsys.readouterr().out
    for name in registry.names():
        assert f"\n{name}\npromise" in f"\n{out}"
    assert "not claimed  context may be another sequence: it takes no context" in out
    assert "selfhead: 1 pass, 0 fail, 1 not claimed, " in out


def test_a_broken_promise_is_exit_1_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "strangers:Careless", "--fast"]) == 1
    out = capsys.readouterr().out
    assert re.search("causal hears no future under a mask +fail ", out)
    assert "output 0 hears token 2 of item 1" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_narrow_and_without_colours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["check", "selfhead", "--fast"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert "\x1b" not in out


def test_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "strangers:Sound", "--only", "keeps the shape", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["passed"]) == ("strangers:Sound", True)
    assert found["promises"][0]["promise"] == "keeps the shape"


def test_options_of_the_constructor(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--args", "embed_dim=16", "num_heads=4", "bias=False"]
    assert main(["check", "multihead", *options, "--only", "keeps the shape"]) == 0
    assert main(["check", "strangers:Sound", "--args", "dim=8", "--only", "keeps the shape"]) == 0


def test_another_way_to_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--call", "strangers:ask_face_hugger", "--claims", "padding"]
    assert main(["check", "strangers:FaceHugger", *how, "--fast"]) == 0
    assert "it does not take every mask" in " ".join(capsys.readouterr().out.split())


def test_one_that_cannot_be_imported_does_not_close_the_door(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = registry.load

    def broken(name: str) -> type[Attention]:
        if name == "multihead":
            raise UserError("models/multihead cannot be imported: SyntaxError: as found")
        return load(name)

    monkeypatch.setattr(registry, "load", broken)
    assert main(["check", "--only", "keeps the shape"]) == 1
    said = capsys.readouterr()
    assert "selfhead: 1 pass" in said.out
    assert "multihead cannot be checked: models/multihead cannot be imported: SyntaxError" in said.err
    assert main(["check", "--only", "keeps the shape", "--json"]) == 1
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["multihead"]["passed"] is False
    assert "SyntaxError" in found["multihead"]["error"]
    assert main(["check", "multihead"]) == 2


@pytest.mark.parametrize("positions", ["none", "rotary(rotary_fraction=0.5)", "alibi"])
def test_a_choice_and_words_of_its_own_are_options(positions: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--args", f"positions={positions}", "--only", "fast path = reference, outputs", "--json"]
    assert main(["check", "multihead", *asked]) == 0
    assert json.loads(capsys.readouterr().out)[0]["passed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multihead", "--args", "bias=none"], "--args takes values as Python writes them: bias=None"),
        (["multihead", "--args", "positions=rotary("], "positions is none, rotary, alibi or t5, or one of these with"),
        (
            ["multihead", "--args", "positions=None"],
            "positions must be a str or an attnlab.positions.Positions, not None",
        ),
        (["multihed"], "unknown model 'multihed'; did you mean multihead?"),
        (["strangers.Sound"], "'strangers.Sound' names no class; write MODULE:CLASS"),
        (["strangers:"], "'strangers:' is not MODULE:CLASS"),
        (["strangers.py:Sound"], "give the module, not its file: strangers:Sound"),
        (["stranger:Sound"], "there is no module stranger, neither in"),
        (["strangers:Soun"], "unknown name in strangers 'Soun'; did you mean Sound?"),
        (["strangers:number"], "a layer is needed, or a class or function that makes one, not 3"),
        (["strangers:Broken"], "Broken cannot be built: TypeError"),
        (["strangers:layer"], "the width of the tokens that Sound takes is not known; give embed_dim"),
        (["strangers:layer", "--args", "dim=3"], "strangers:layer is no class or function, so --args"),
        (["strangers:Sound", "--args", "dim"], "--args takes NAME=VALUE, such as embed_dim=64, not 'dim'"),
        (["strangers:Sound", "--args", "causal=true"], "--args takes values as Python writes them: causal=True"),
        (["strangers:Sound", "--args", "colour=red"], "unexpected keyword argument 'colour'"),
        (["--args", "num_heads=4"], "--args are one layer's options; name it"),
        (["multihead", "--fsat"], "unknown option --fsat; did you mean --fast?"),
        (["multihead", "--only", "dropout is of in eval"], "did you mean dropout is off in eval?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_another.py").write_text("import not_there_at_all\n", encoding="utf-8")
    (tmp_path / "divides.py").write_text("1 / 0\n", encoding="utf-8")
    command = [sys.executable, "-m", "attnlab", "check"]
    for module, reason in {
        "needs_another": "No module named 'not_there_at_all'",
        "divides": "ZeroDivisionError",
    }.items():
        ran = subprocess.run([*command, f"{module}:X"], capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert f"{module} cannot be imported" in ran.stderr
        assert reason in ran.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom attnlab.cli import main\ntry:\n    main(['check', '--help'])\n"
        "except SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--fast" in ran.stdout
