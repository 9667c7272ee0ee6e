"""The pages of the documentation as tests see them: their blocks, what these print, and their links.

- The Python blocks of a page run top to bottom in one namespace.
- A ``text`` block right below a block is its output. A Python block that prints must show its output.
- Numbers agree within half a unit of the last digit shown, and within 0.02 where a network is trained; ``...`` stands
  for anything.
- A statement with the comment ``# raises Error: message`` must raise that error; the page continues after it.
- ``sh`` blocks run in a copy of the checkout; plain calls of the command line run in this process, which has imported
  torch already.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from markdown_it import MarkdownIt

from attnlab.cli import main

ROOT = Path(__file__).parents[2]
LANGUAGES = {"python", "sh", "text"}
TRAINING_TOLERANCE = 0.02
"""Another processor rounds differently and ends with another network that is as good."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line where the code starts, and the output shown for it."""

    language: str
    code: str
    line: int
    output: str | None = None


def documents() -> list[Path]:
    """Every page of the project."""
    patterns = ("*.md", "docs/**/*.md", "models/**/*.md", "benchmarks/**/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix() if document.is_relative_to(ROOT) else document.name


# Reading

MARKDOWN = MarkdownIt("commonmark").enable("table")


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, each with its output."""
    found: list[Block] = []
    lines, after_block = text.split("\n"), False
    for token in MARKDOWN.parse(text):
        if token.type == "fence":
            assert token.map is not None
            start, end = token.map
            assert lines[end - 1].strip() == token.markup, f"line {start + 1}: this block is never closed"
            code = token.content.removesuffix("\n")
            if token.info == "text" and after_block and found[-1].language != "text":
                found[-1] = replace(found[-1], output=code)
            else:
                found.append(Block(token.info, code, start + 2))
        after_block = token.type == "fence"
    return found


def prose(text: str) -> str:
    """The page without its blocks and comments."""
    text = re.sub(r"^( *)(```+).*?^\1\2\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def commands(block: Block) -> list[str]:
    """The commands of a shell block; one with an open quote continues on the next line."""
    found: list[str] = []
    pending = ""
    for line in block.code.replace("\\\n", " ").split("\n"):
        pending += line
        with contextlib.suppress(ValueError):  # an open quote
            if shlex.split(pending, comments=True):
                found.append(pending if "\n" in pending else " ".join(re.sub(r"(^|\s)#.*", "", pending).split()))
            pending = ""
            continue
        pending += "\n"
    return found


def tables(text: str) -> Iterator[list[str]]:
    """Every row of every table, as its cells."""
    for line in prose(text).split("\n"):
        if line.strip().startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def anchors(text: str) -> set[str]:
    """The names under which headings can be linked."""
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        counts[slug] = counts.get(slug, 0) + 1
    return {f"{slug}-{n}" if n else slug for slug, count in counts.items() for n in range(count)}


def links(text: str) -> list[str]:
    """The targets of the links and images."""
    found: list[str] = []
    for token in MARKDOWN.parse(text):
        for part in token.children or [token]:
            found += [str(part.attrs[key]) for key in ("href", "src") if key in part.attrs]
            if part.type.startswith("html"):
                found += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", part.content)
    return found


def broken_links(document: Path) -> list[str]:
    """The links into the project whose target does not exist."""
    broken = []
    for link in links(document.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if re.match(r"[a-z]+:", link):
            continue
        missing_anchor = anchor and target.suffix == ".md" and target.exists()
        if not target.exists() or (missing_anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    return broken


# Comparing

TOKEN = re.compile(r"\.\.\.|[^\W\d]\w*|\d+(?:\.\d+)?(?:e[-+]?\d+)?|\S")


def matches(shown: str, printed: str, tolerance: float = 0.0) -> bool:
    """Whether ``printed`` has the same words as ``shown``, and the same numbers to the digits that are shown."""
    want, have = TOKEN.findall(shown), TOKEN.findall(printed)
    i = j = 0
    last: tuple[int, int] | None = None  # the latest `...`, and how much of the output it stands for
    while j < len(have):
        if i < len(want) and want[i] == "...":
            last, i = (i, j), i + 1
        elif i < len(want) and _same(want[i], have[j], tolerance):
            i, j = i + 1, j + 1
        elif last is not None:
            last = (last[0], last[1] + 1)
            i, j = last[0] + 1, last[1]
        else:
            return False
    return all(token == "..." for token in want[i:])


def _same(shown: str, printed: str, tolerance: float) -> bool:
    if not (shown[0].isdigit() and printed[0].isdigit()):
        return shown == printed
    digits, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    allowed = max(0.5 * unit, tolerance) if "." in shown or exponent else 0
    return abs(float(shown) - float(printed)) <= allowed + 1e-9 * unit


# Running


@dataclass
class Runner:
    """Runs the blocks of a page in ``folder``, a copy of the checkout.

    ``replacement`` gives the command that runs in place of another, or None to skip it.
    """

    folder: Path
    replacement: Callable[[str], str | None] = lambda command: command

    def run(self, document: str, text: str) -> None:
        """Run every block, top to bottom.

        Raises:
            AssertionError: with the page and the line, if a block fails or prints something else.
        """
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(text):
            where = f"{document}:{block.line}"
            assert block.language in LANGUAGES, f"{where}: a block in {block.language or 'no language'}"
            if block.language == "python" and self.replacement(block.code.split("\n")[0]) is not None:
                printed = run_python(block, names, where)
                assert block.output is not None or not printed, f"{where} prints, but does not show:\n{printed}"
                compare(block.output, printed, where)
            elif block.language == "sh":
                self._run_shell(block, where)

    def _run_shell(self, block: Block, where: str) -> None:
        typed = commands(block)
        script = [command for command in map(self.replacement, typed) if command is not None]
        if not script:
            return
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
        }
        with mock.patch.dict(os.environ, environment), contextlib.chdir(self.folder):
            run = run_here if all(map(CALL.fullmatch, script)) else run_in_shell
            code, printed, errors = run(script)
        assert code == 0, f"{where} exits with {code}:\n{printed}{errors}"
        if script == typed:  # a shorter command prints something else
            trains = any(command.startswith("python main.py") for command in typed)
            compare(block.output, printed, where, TRAINING_TOLERANCE if trains else 0.0)


CALL = re.compile(r"(python main.py|attnlab (?!new))[^|><$;&\n]*")
"""A call of the command line without shell syntax; `attnlab new` adds a mechanism, which a new process must find."""


def run_in_shell(script: list[str]) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of the commands."""
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(script)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def run_here(script: list[str]) -> tuple[int, str, str]:
    """Return what `run_in_shell` returns, without a process per command."""
    code, out, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in script:
            program, *arguments = shlex.split(command)
            try:
                code = code or main(["train", *arguments[1:]] if program == "python" else arguments)
            except SystemExit as stop:  # --help
                code = int(stop.code or 0)
    return code, out.getvalue(), errors.getvalue()


def compare(shown: str | None, printed: str, where: str, tolerance: float = 0.0) -> None:
    assert shown is None or matches(shown, printed, tolerance), f"{where} shows:\n{shown}\nbut prints:\n{printed}"


def run_python(block: Block, names: dict[str, Any], where: str) -> str:
    """Run a block statement by statement and return what it prints."""
    lines = block.code.split("\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for statement in ast.parse(block.code, where).body:
            source = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
            expected = re.search(r"# raises (\w+)(?:: (.*))?", source)
            line = f"{where} (line {statement.lineno} of the block)"
            try:
                exec(compile(ast.Module([statement], []), where, "exec"), names)
            except Exception as error:
                kind, message = type(error).__name__, str(error)
                if expected is None:
                    raise AssertionError(f"{line}: {kind}: {message}") from error
                same = kind == expected[1] and matches(expected[2] or "...", message)
                assert same, f"{line} raises {kind}: {message}\ninstead of {expected[0][2:]}"
            else:
                assert expected is None, f"{line} does not raise {expected and expected[1]}"
    return printed.getvalue()
