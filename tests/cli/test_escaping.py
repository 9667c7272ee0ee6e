"""Text from files is escaped when it is printed, and not parsed as markup."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from calls import ROWS, SMALL, TABLE, error_of, output_of, write_files
from rich.table import Table
from rich.text import Text

import attnlab.cli
from attnlab.cli._console import Console, say
from attnlab.utils.escape import markdown, one_line, shell_word, visible

HOSTILE = (
    "\x1b]8;;https://example.org\x07here\x1b]8;;\x07\x1b[2J\u202egnp.\u2066\x9b31m\r\x7f[bold red]x[/bold red]:smile:"
)
CONSOLE = Path(attnlab.cli.__file__).with_name("_console.py")
COMMANDS = set(CONSOLE.parent.glob("*.py"))


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
    command = ["bash", "-c", f"printf %s {quoted}"]
    assert subprocess.run(command, capture_output=True, env={"LC_ALL": "C.UTF-8"}).stdout.decode() == word


def test_markdown_cells_are_escaped() -> None:
    assert markdown("a|b`c`<script>\n[x](y)&amp;") == r"a\|b\`c\`&lt;script>\\n\[x\](y)&amp;amp;"
    assert markdown(3) == "3"


def test_the_console_escapes_ignores_markup_and_applies_styles() -> None:
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=200, color_system=None)
        table = Table(HOSTILE, title=HOSTILE)
        table.add_row(HOSTILE, style="bold")
        for shown in (HOSTILE, Text(HOSTILE), table):
            console.print(shown)
        assert is_escaped(stream.getvalue())
        assert stream.getvalue().count("[bold red]x[/bold red]:smile:") == 5
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


def test_only_one_module_prints() -> None:
    for file in COMMANDS - {CONSOLE}:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write", "rich.print"), ast.unparse(node)
                assert not {"markup", "emoji"} & {str(k.arg) for k in node.keywords} or "TextColumn" in called
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {"rich", "rich.console"} & set(names), ast.unparse(node)


def test_errors_are_one_escaped_line() -> None:
    error = error_of("evaluate", f"missing{HOSTILE}\nfolder")
    assert is_escaped(error)
    assert "[bold red]x[/bold red]" in error


def test_a_run_folder_with_an_unusual_name(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks._supervised.classifiers", lambda *_: [])
    write_files(empty_folder, {"mine.csv": "a,b,way\n" + ROWS})
    run = Path("runs/sweep[/tmp] [lr=0.1] [bold]\x1b[2J")
    words = (*SMALL, *TABLE, "--steps", "2", "--run_dir", str(run))
    for command in (words, ("runs", str(run.parent)), ("evaluate", str(run)), ("train", "--resume", str(run))):
        out = output_of(*command)
        assert is_escaped(out)
        assert command[0] == "evaluate" or visible(str(run)) in out
    result = json.loads((run / "result.json").read_text("utf-8"))
    for changed, command, shown in (
        ({"remark": HOSTILE}, ("train", "--resume", str(run)), "[bold red]x[/bold red]"),
        ({HOSTILE: 1}, ("runs", str(run.parent)), "damaged"),
    ):
        (run / "result.json").write_text(json.dumps({**result, **changed}), encoding="utf-8")
        out = output_of(*command)
        assert is_escaped(out)
        assert shown in out
