"""Documents as tests see them: their blocks, what these print, and their links.

Conventions, all of them readable on a page:
- Python blocks of one document run top to bottom in one namespace.
- A ``text`` block right below a block is what that block prints. Python that prints must show it.
- Numbers agree within half a unit of the last digit shown; ``...`` stands for anything.
- A statement with the comment ``# raises Error: message`` must raise that, and the document goes on.
- ``sh`` blocks run in a copy of the checkout; in ``console`` blocks the lines with ``$`` do, and the others are
  what they print.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUN = {"python", "sh", "console"}
SHOWN = {"text", "toml", "yaml", "json", "markdown", "makefile", "diff", "bibtex", "csv"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where its code starts, and the ``text`` block right below it."""

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


def blocks(text: str) -> list[Block]:
    """The blocks of a document, each with the output that is shown for it."""
    found: list[Block] = []
    previous_end = -1
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        opening = re.match(r"( *)(```+)(\w*)", lines[i])
        if opening is None:
            i += 1
            continue
        indent, fence, language = len(opening[1]), opening[2], opening[3]
        end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == fence), None)
        if end is None:
            raise AssertionError(f"line {i + 1}: this block is never closed")
        code = "\n".join(line[indent:] for line in lines[i + 1 : end])
        between = "".join(lines[previous_end + 1 : i]).strip()
        if (
            language == "text"
            and found
            and previous_end >= 0
            and not between
            and found[-1].language in ("python", "sh")
        ):
            found[-1] = Block(found[-1].language, found[-1].code, found[-1].line, code)
        else:
            found.append(Block(language, code, i + 2))
        previous_end, i = end, end + 1
    return found


def prose(text: str) -> str:
    """The document without its blocks and comments."""
    text = re.sub(r"^( *)(```+).*?^\1\2\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def commands(block: Block) -> list[str]:
    """What a shell block types, comments left away."""
    lines = block.code.replace("\\\n", "").split("\n")
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    typed = (re.sub(r"(^|\s)#.*", "", line) for line in lines)
    return [" ".join(line.split()) for line in typed if line.strip()]


def tables(text: str) -> Iterator[list[str]]:
    """Every row of every table, as its cells."""
    for line in prose(text).split("\n"):
        if line.strip().startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def anchors(text: str) -> set[str]:
    """The names under which headings can be linked."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if n == 0 else f"{slug}-{n}" for slug, times in found.items() for n in range(times + 1)}


def links(text: str) -> list[str]:
    """Where the links and the pictures point."""
    text = re.sub(r"`[^`\n]*`", "``", prose(text))
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    below = re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, flags=re.MULTILINE)
    html = re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [*inline, *below, *html]


def broken_links(document: Path) -> list[str]:
    """The links into the project that lead nowhere."""
    broken = []
    for link in links(document.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8"))
        ):
            broken.append(link)
    return broken


# Comparing

TOKEN = re.compile(r"\.\.\.|[^\W\d]\w*|\d+(?:\.\d+)?(?:e[-+]?\d+)?|\S")


def matches(shown: str, printed: str) -> bool:
    """Whether what was printed is what is shown: the same words, numbers as far as they are shown."""
    want, have = TOKEN.findall(shown), TOKEN.findall(printed)
    i = j = 0
    last: tuple[int, int] | None = None  # the latest `...`, and how far it has reached
    while j < len(have):
        if i < len(want) and want[i] == "...":
            last, i = (i, j), i + 1
        elif i < len(want) and _same(want[i], have[j]):
            i, j = i + 1, j + 1
        elif last is not None:
            last = (last[0], last[1] + 1)
            i, j = last[0] + 1, last[1]
        else:
            return False
    return all(token == "..." for token in want[i:])


def _same(shown: str, printed: str) -> bool:
    if not (shown[0].isdigit() and printed[0].isdigit()):
        return shown == printed
    digits, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(float(shown) - float(printed)) <= (0.5 * unit if "." in shown or exponent else 0) + 1e-9 * unit


# Running


@dataclass
class Runner:
    """Runs one document in ``folder``, a copy of the checkout.

    ``instead`` says what is typed in place of a command, or None where it is left out.
    """

    folder: Path
    instead: Callable[[str], str | None] = lambda command: command

    def run(self, document: str, text: str) -> None:
        """Run every block, top to bottom.

        Raises:
            AssertionError: naming the document and the line, where a block fails or prints something else.
        """
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(text):
            where = f"{document}:{block.line}"
            assert block.language in RUN | SHOWN, f"{where}: a block in {block.language or 'no language'}"
            if block.language == "python" and self.instead(block.code.split("\n")[0]) is not None:
                printed = run_python(block, names, where)
                assert block.output is not None or not printed, f"{where} prints, but does not show:\n{printed}"
                compare(block.output, printed, where)
            elif block.language == "sh":
                self._sh(block, where)
            elif block.language == "console":
                self._console(block, where)

    def _sh(self, block: Block, where: str) -> None:
        typed = commands(block)
        run = [self.instead(command) for command in typed]
        script = "\n".join(command for command in run if command is not None)
        printed = self._shell(script, where) if script else ""
        if run == typed:  # what was shortened prints something else
            compare(block.output, printed, where)

    def _console(self, block: Block, where: str) -> None:
        for part in re.split(r"^\$ ", block.code.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            run = self.instead(command)
            if run is not None:
                printed = self._shell(run, where)
                if run == command:
                    compare(output, printed, where)

    def _shell(self, script: str, where: str) -> str:
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{where} left with {done.returncode}:\n{script}\n{done.stdout}{done.stderr}"
        return done.stdout


def compare(shown: str | None, printed: str, where: str) -> None:
    assert shown is None or matches(shown, printed), f"{where} shows:\n{shown}\nbut prints:\n{printed}"


def run_python(block: Block, names: dict[str, Any], where: str) -> str:
    """Run a block statement by statement, and give what it printed."""
    lines = block.code.split("\n")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for statement in ast.parse(block.code, where).body:
            source = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
            wanted = re.search(r"# raises (\w+)(?:: (.*))?", source)
            line = f"{where} (line {statement.lineno} of the block)"
            code = compile(ast.Module([statement], []), where, "exec")
            try:
                exec(code, names)  # the page is ours
            except Exception as error:
                kind, message = type(error).__name__, str(error)
                if wanted is None:
                    raise AssertionError(f"{line}: {kind}: {message}") from error
                same = kind == wanted[1] and matches(wanted[2] or "...", message)
                assert same, f"{line} raises {kind}: {message}\ninstead of {wanted[0][2:]}"
            else:
                assert wanted is None, f"{line} does not raise {wanted and wanted[1]}"
    return said.getvalue()
