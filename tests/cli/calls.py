"""Call a command line in the process of a test."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from attnlab.cli import main

SMALL = ("train", "--embed_dim", "8", "--layers", "1")
TABLE = ("--model", "multihead", "--num_heads", "2", "--data", "mine.csv", "--target", "way")
ROWS = "".join(f"{i % 7}.5,{i % 5},{'xyz'[i % 3]}\n" for i in range(89))


class CommandResult(NamedTuple):
    """The exit code and the two outputs of a command."""

    code: int
    out: str
    err: str


def call(*words: str) -> CommandResult:
    """Run ``attnlab WORDS`` in this process; neither output is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as exit:  # from --help
            code = exit.code if isinstance(exit.code, int) else 0
    return CommandResult(code, out.getvalue(), err.getvalue())


def output_of(*words: str) -> str:
    """The output of a command that succeeds."""
    done = call(*words)
    assert done.code == 0, done
    return done.out


def trained(*words: str, run: str = "run") -> str:
    """Train a small network; the output."""
    return output_of(*SMALL, "--quiet", *words, "--run_dir", run)


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder with their contents, and the folders with none."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def error_of(*words: str) -> str:
    """The one-line error of a command, which must not change the current folder."""
    before = contents_of(Path())
    done = call(*words)
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("error: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    assert contents_of(Path()) == before
    return done.err.removeprefix("error: ").rstrip("\n")


def write_files(folder: Path, contents: dict[str, str | bytes]) -> None:
    """Write files."""
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
