"""Text from files is escaped when it is printed, and not parsed as markup."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import attnlab.cli
from attnlab.cli import main
from attnlab.cli._console import Console, say
from attnlab.utils.escape import markdown, one_line, shell_word, visible

HOSTILE = (
    "\x1b]8;;https://example.org\x07here\x1b]8;;\x07\x1b[2J\u202egnp.\u2066\x9b31m\r\x7f[bold red]x[/bold red]:smile:"
)
COMMANDS = Path(attnlab.cli.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def is_escaped(text: str) -> bool:
    """Whether a text has no control character but newline and tab, and no control of direction."""
    return not any((ord(c) < 32 and c not in "\n\t") or 126 < ord(c) < 160 or c in "\u202e\u2066\u2028" for c in text)


def test_what_is_escaped() -> None:
    assert visible("a\x1b[2J\u202eb\n\tc\x9b\u2028") == "a\\x1b[2J\\u202eb\n\tc\\x9b\\u2028"
    assert visible("ä 日本 👩‍🔬 é") == "ä 日本 👩‍🔬 é"
    assert visible("\ud800") == "\\ud800"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert visible(visible(HOSTILE)) == visible(HOSTILE)
    assert is_escaped(visible(HOSTILE))


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "a\nb", "\x1b[2J'\\", "```\n```", "\u202e"])
def test_a_quoted_word_is_one_line_that_a_shell_reads_back(word: str) -> None:
    quoted = shell_word(word)
    assert "\n" not in quoted
    assert is_escaped(quoted)
    ran = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert ran.stdout.decode() == word


def test_markdown_cells_are_escaped() -> None:
    assert markdown("a|b`c`<script>\n[x](y)&amp;") == r"a\|b\`c\`&lt;script>\\n\[x\](y)&amp;amp;"
    assert markdown(3) == "3"


def test_the_console_escapes_and_ignores_markup() -> None:
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=200, color_system=None)
        table = Table(HOSTILE, title=HOSTILE)
        table.add_row(HOSTILE, style="bold")
        for shown in (HOSTILE, Text(HOSTILE), table):
            console.print(shown)
        assert is_escaped(stream.getvalue())
        assert stream.getvalue().count("[bold red]x[/bold red]:smile:") == 5


def test_the_console_applies_styles() -> None:
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="standard").print("x", style="bold")
    assert stream.getvalue() == "\x1b[1mx\x1b[0m\n"


def test_say_escapes_on_a_terminal_and_in_messages_and_keeps_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(HOSTILE)
    say(HOSTILE, file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == HOSTILE + "\n", "data in a pipe are exact"
    assert err == visible(HOSTILE) + "\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    say(HOSTILE)
    assert terminal.getvalue() == visible(HOSTILE) + "\n"
    monkeypatch.setattr(sys, "stdout", None)
    say(HOSTILE)


@pytest.mark.parametrize("file", sorted(COMMANDS.glob("*.py")), ids=lambda path: path.stem)
def test_only_one_module_prints(file: Path) -> None:
    if file.name == "_console.py":
        return
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.stdout.write", "sys.stderr.write", "rich.print"), ast.unparse(node)
            assert not {"markup", "emoji"} & {str(k.arg) for k in node.keywords} or "TextColumn" in called
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {"rich", "rich.console"} & set(names), ast.unparse(node)


def test_errors_are_one_escaped_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"missing{HOSTILE}\nfolder"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert is_escaped(err)
    assert "[bold red]x[/bold red]" in err


@pytest.mark.parametrize("name", ["x[lr=0.1]", "sweep[/tmp]", "[bold]", "\x1b[2J"])
def test_run_folders_with_unusual_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("attnlab.tasks._supervised.classifiers", lambda *_: [])
    (tmp_path / "data.csv").write_text("a,b\n" + "".join(f"{i % 7},{i % 2}\n" for i in range(60)), encoding="utf-8")
    small = ["--embed_dim", "8", "--num_heads", "2", "--layers", "1", "--steps", "2"]
    assert main(["train", "--data", "data.csv", "--target", "b", *small, "--run_dir", f"runs/{name}"]) == 0
    shown = visible(name)
    out = capsys.readouterr().out
    assert shown in out
    assert is_escaped(out)
    result = json.loads((tmp_path / "runs" / name / "result.json").read_text("utf-8"))
    parent = str(Path("runs", name).parent)
    for words in (["runs", parent], ["evaluate", f"runs/{name}"], ["train", "--resume", f"runs/{name}"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert is_escaped(out)
    (tmp_path / "runs" / name / "result.json").write_text(json.dumps({**result, "remark": HOSTILE}), encoding="utf-8")
    assert main(["train", "--resume", f"runs/{name}"]) == 0
    out = capsys.readouterr().out
    assert is_escaped(out)
    assert "[bold red]x[/bold red]" in out
    (tmp_path / "runs" / name / "result.json").write_text(json.dumps({**result, HOSTILE: 1}), encoding="utf-8")
    assert main(["runs", parent]) == 0
    out = capsys.readouterr().out
    assert is_escaped(out)
    assert "damaged" in out
