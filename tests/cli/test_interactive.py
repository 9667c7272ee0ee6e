"""The questions, answered from a pipe and on a terminal."""

from __future__ import annotations

import io
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from answers import Said, below, call, files, refused

from attnlab.catalog import registry
from attnlab.training.runs import Run

if sys.platform == "win32":  # pragma: no cover
    pytest.skip("no pseudo-terminals here", allow_module_level=True)
import pty

SHORT = ("--steps", "2", "--quiet", "--run_dir", "run")
QUESTIONS = (
    "the mechanism",
    "the task",
    "the embedding width (embed_dim)",
    "(num_heads)",
    "the position embedding that is added to each token (position_embedding)",
    "blocks of [mechanism, MLP] (layers)",
    "sequences per step (batch_size)",
    "the peak learning rate (learning_rate)",
    "also save the network to a file",
    "train now",
)


def answered(monkeypatch: pytest.MonkeyPatch, typed: str, *words: str) -> Said:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return call("train", "--interactive", *words)


def flat(said: Said) -> str:
    """What was printed, whatever the width of the terminal."""
    return " ".join(said.out.split())


def same_as(said: Said) -> list[str]:
    """The command that is shown to say the same."""
    return shlex.split(said.out.split("equivalent command:\n  ")[1].split("\n")[0])


def test_empty_answers_take_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answered(monkeypatch, "\n" * 20, *SHORT)
    assert (said.code, said.err) == (0, "")
    assert all(question in said.out for question in QUESTIONS)
    settings = Run.open(Path("run")).settings
    assert (settings.model.model, settings.data.task, settings.model.embed_dim) == ("multihead", "digits", 64)


def test_choices_by_name_and_by_number_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: the card of each model is shown beside its name."""
    tail = "\n16\n\n\n\n\n\nno\n"
    by_name = answered(monkeypatch, "selfhead\ndigits" + tail, *SHORT)
    number = re.search(r"^ +(\d+)  selfhead +(.+)$", by_name.out, re.MULTILINE)
    assert number is not None
    assert "head" in number[2]
    task = re.search(r"^  (\d)  digits ", by_name.out, re.MULTILINE)
    assert task is not None
    by_number = answered(monkeypatch, f"{number[1]}\n{task[1]}{tail}", *SHORT)
    assert same_as(by_name) == same_as(by_number)
    assert by_name.code == by_number.code == 0
    assert "nothing was started" in by_name.out
    assert below(Path()) == {}


def test_the_command_shown_trains_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answered(monkeypatch, "multihead\ndigits\n24\n3\n\nrotary(base=500)\n2\n1\n16\n0.01\n\nyes\n", *SHORT)
    assert said.code == 0, said
    program, command, *words = same_as(said)
    assert (program, command) == ("attnlab", "train")
    words[words.index("run")] = "again"
    assert call("train", *words).code == 0
    assert Path("run/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    settings = Run.open(Path("run")).settings
    assert (settings.model.embed_dim, settings.model.options["num_heads"], settings.model.layers) == (24, 3, 1)
    assert settings.model.options["positions"] == "rotary(base=500)"
    assert settings.model.position_embedding == "sinusoidal"


def test_wrong_answers_are_refused_there_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [
        *("multihed", "97", "multihead", "digit", "digits"),
        *("0", "wide", "-3", "10"),
        *("3", "0", "2.5", "10"),
        "",
        *("rotery", "rotary", "t5(buckets=3)", "2", "alibi"),
        *("waves", "none"),
        *("0", "2"),
        *("0", ""),
        *("nan", "0.01"),
        *("x.bin", "/proc/none/x.pth", ""),
        *("perhaps", "no"),
    ]
    said = answered(monkeypatch, "\n".join(typed) + "\n", *SHORT)
    assert said.code == 0, said
    for words in (
        "unknown model 'multihed'; did you mean multihead?",
        "unknown model '97'; there are: ",
        "unknown task 'digit'; did you mean digits?",
        "embed_dim must be from 1 to 65,536, not 0",
        "--embed_dim must be an integer, not 'wide'",
        "embed_dim must be from 1 to 65,536, not -3",
        "embed_dim (10) must be divisible by num_heads (3); try num_heads=1, 2 or 5",
        "num_heads must be an integer, not '2.5'",
        "or one of these with settings, such as rotary(base=500000); not 'rotery'; did you mean rotary",
        "buckets is a whole number from 4 to 65536, not 3",
        "unknown position_embedding 'waves'; there are: learned, sinusoidal, none",
        "rotary positions need an even head_dim, not 1",
        "layers must be from 1 to 1,000, not 0",
        "batch_size must be from 1 to 10,000,000, not 0",
        "learning_rate must be from 1e-12 to 100, not nan",
        "--save_path x.bin must end in .safetensors, .pth or .pt",
        "cannot write --save_path /proc/none/x.pth",
        "unknown start 'perhaps'",
    ):
        assert words in flat(said), words
    assert "--num_heads 10" in " ".join(same_as(said))
    assert below(Path()) == {}


def test_flags_beside_it_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model", "multihead", "--embed-dim=16", "--num_heads", "2", "--layers", "1", "--no-bias")
    said = answered(monkeypatch, "\n" * 9, *SHORT, *words)
    assert said.code == 0, said
    for question in ("the mechanism [", "embed_dim)", "num_heads)", "layers)", "(bias)", "optimizer steps"):
        assert question not in said.out
    for question in ("the task", "(batch_size)", "(learning_rate)", "train now"):
        assert question in said.out
    settings = Run.open(Path("run")).settings
    assert (settings.model.embed_dim, settings.model.options["num_heads"], settings.model.options["bias"]) == (
        *(16, 2),
        False,
    )


def test_heads_that_do_not_divide_are_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answered(monkeypatch, "multihead\ndigits\n35\n" + "\n" * 8 + "no\n", *SHORT)
    assert said.code == 0, said
    assert "(num_heads) [7]" in said.out


def test_a_file_and_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{i % 7},{'xy'[i % 7 > 3]},same\n" for i in range(89))
    files(Path(), {"mine.csv": "number,letter,one\n" + rows, "ragged.csv": "a,b\n1,2\n3\n"})
    Path("folder.csv").mkdir()
    names = ["", "none.csv", "x.doc", "folder.csv", "ragged.csv", "mine.csv"]
    typed = ["multihead", "my own file", *names, "size", "one", "letter", "16", "2"]
    said = answered(monkeypatch, "\n".join(typed) + "\n" * 9, *SHORT)
    assert said.code == 0, said
    for words in (
        "my own file a table, a text or arrays (",
        "give the name of a file",
        "none.csv does not exist",
        "no task reads .doc (x.doc); give one of ",
        "folder.csv is a folder; give a file in it",
        "ragged.csv cannot be read as a table: line 3 has 1 field, the header 2",
        "unknown target 'size'; there are: number, letter, one",
        "every row is of one class (same)",
        "the column to predict [one]:",
    ):
        assert words in flat(said), words
    settings = Run.open(Path("run")).settings
    assert (settings.data.target, settings.data.task) == ("letter", "table")


def test_the_last_column_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{i % 7},{i % 5},{'xy'[i % 7 > 3]}\n" for i in range(89))
    files(Path(), {"mine.csv": "number,other,letter\n" + rows})
    said = answered(monkeypatch, "my own file\nmine.csv\n\n", *SHORT, "--model=selfhead")
    assert "the column to predict [letter]: letter the embedding width (embed_dim)" in flat(said)
    assert "the input ended before the last question" in said.err


def test_a_file_of_text_has_no_column_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"the {i} quick brown foxes jump over {i} dogs\n\n" for i in range(97))
    files(Path(), {"mine.txt": text})
    said = answered(monkeypatch, "my own file\nmine.txt\n", *SHORT, "--model=selfhead")
    assert "my own file your file (" in flat(said)
    assert "): mine.txt the embedding width (embed_dim)" in flat(said)


@pytest.mark.parametrize("task", ["table", "arrays"])
def test_a_task_that_needs_a_file_is_not_a_choice_but_may_be_a_flag(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"unknown task '{task}'; " in flat(answered(monkeypatch, f"multihead\n{task}\n", *SHORT))
    said = answered(monkeypatch, "multihead\n\n", *SHORT, "--task", task)
    assert f"{task} has no built-in data; give a file" in flat(said)


def test_lines_are_wrapped_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (40, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = answered(monkeypatch, "multihed\nlongformer\ndigits\n", *SHORT)
        assert said.code == 2
        assert max(map(len, said.out.splitlines())) <= columns
        for text in (registry.entry("longformer").card.summary, "unknown model 'multihed'; did you mean multihead?"):
            assert text in flat(said)


def test_a_command_is_in_one_line_because_it_is_to_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    said = answered(monkeypatch, "\n" * 5 + "no\n", *SHORT, "--model=selfhead", "--layers=1", "--embed_dim=8")
    assert same_as(said)[-2:] == ["run", "--quiet"]


def test_so_many_columns_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"c{i}" for i in range(211)]
    rows = "".join(",".join(str((i * j) % 7) for j in range(210)) + f",{'xy'[i % 2]}\n" for i in range(97))
    files(Path(), {"wide.csv": ",".join(names) + "\n" + rows})
    said = answered(monkeypatch, "multihead\nmy own file\nwide.csv\n", *SHORT)
    assert "the column to predict [c210]:" in flat(said)
    assert " c17 " not in said.out


def test_a_closed_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``<&-`` does in a shell, and a stream that was closed."""
    closed = io.StringIO()
    closed.close()
    for stdin in (None, closed):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert refused("train", "--interactive") == (
            "--interactive reads answers from standard input, which is closed; give the settings as flags"
        )


def test_an_input_that_is_no_text_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    said = call("train", "--interactive")
    assert (said.code, said.err) == (2, "error: the input is not valid UTF-8; nothing was started\n")


def test_a_closed_input_is_said_by_a_process_of_its_own() -> None:
    command = f"{shlex.quote(sys.executable)} -m attnlab train --interactive <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --interactive reads answers from standard input, which is closed")
    assert done.stderr.count("\n") == 1


def test_help_asks_nothing() -> None:
    assert "usage: attnlab train" in call("train", "--interactive", "--help").out


@pytest.mark.parametrize("typed", ["", "multihead\n", "multihead\ndigits\n" + "\n" * 6])
def test_an_input_that_ends_leaves_nothing(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = answered(monkeypatch, typed, *SHORT)
    assert said.code == 2
    assert said.err == "error: the input ended before the last question; nothing was started\n"
    assert below(Path()) == {}


@pytest.mark.parametrize("flag", ["--embed_dim=0", "--learning_rate=nan", "--embed_dimm=3", "--resume=x"])
def test_a_wrong_flag_beside_it(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * 20))
    said = call("train", "--interactive", flag)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert below(Path()) == {}


def test_ctrl_c_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *_: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    said = call("train", "--interactive")
    assert (said.code, said.err) == (130, "stopped\n")


def test_resume_has_nothing_to_ask() -> None:
    assert call("train", *SHORT, "--embed_dim", "8", "--layers", "1").code == 0
    assert "leave out --interactive or --resume" in refused("train", "--interactive", "--resume", "run")


# On a terminal


class Terminal:
    """``attnlab`` on a terminal of its own."""

    def __init__(self, *words: str, columns: int = 100) -> None:
        self._raw, self._read_up_to = "", 0
        self.process, self._end = pty.fork()
        if not self.process:
            os.environ.update(TERM="xterm", COLUMNS=str(columns), LINES="40")
            os.execv(sys.executable, [sys.executable, "-m", "attnlab", *words])

    @property
    def shown(self) -> str:
        """All that was printed, without what moves the cursor and colours it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._raw)

    def until(self, text: str) -> None:
        """Read on until a text comes, after the one that was waited for last."""
        while text not in self.shown[self._read_up_to :]:
            assert self._more(), f"{text!r} never came: {self.shown}"
        self._read_up_to = self.shown.index(text, self._read_up_to) + len(text)

    def _more(self) -> bool:
        if not select.select([self._end], [], [], 120)[0]:  # waits for a key that this test does not press
            os.kill(self.process, signal.SIGKILL)
            return False
        try:
            text = os.read(self._end, 65536).decode(errors="replace")
        except OSError:  # the other side has gone
            return False
        if "\x1b[6n" in text:  # where is the cursor? a terminal answers
            os.write(self._end, b"\x1b[1;1R")
        self._raw += text
        return bool(text)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._end, keys.encode())

    def leave(self) -> int:
        """The exit code, once all has been read."""
        while self._more():
            pass
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


DOWN, ENTER, CTRL_C, CTRL_D = "\x1b[B", "\r", "\x03", "\x04"


@pytest.mark.slow
def test_arrow_keys_and_a_refusal_on_a_terminal() -> None:
    terminal = Terminal("train", "--interactive", *SHORT, "--layers", "1", "--batch_size=32", "--learning_rate=0.01")
    terminal.until("the mechanism")
    terminal.until("selfhead")
    terminal.type("selfhead" + DOWN + ENTER)  # what is typed leaves those that hold it
    terminal.until("the task")
    terminal.until("digits")
    terminal.type(ENTER)
    terminal.until("(embed_dim)")
    terminal.type("\x7f\x7f0" + ENTER)
    terminal.until("embed_dim must be from 1 to 65,536, not 0")
    terminal.type("\x7f16" + ENTER)
    terminal.until("the position embedding that")
    terminal.type(ENTER)
    terminal.until("save_path")
    terminal.type(ENTER)
    terminal.until("equivalent command")
    terminal.until("train now")
    terminal.type("y")
    assert terminal.leave() == 0, terminal.shown
    settings = Run.open(Path("run")).settings
    assert (settings.model.model, settings.model.embed_dim) == ("selfhead", 16)


@pytest.mark.slow
def test_enter_has_no_effect_while_no_choice_matches_on_a_terminal() -> None:
    terminal = Terminal("train", "--interactive", *SHORT, "--model", "selfhead", "--embed_dim=8", "--layers=1")
    terminal.until("the task")
    terminal.until("my own file")
    terminal.type("indxction" + ENTER)
    terminal.until("\x07")
    terminal.type("\x7f" * 9 + "induction" + ENTER)
    terminal.until("(position_embedding)")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130, terminal.shown
    assert "the task induction" in terminal.shown


@pytest.mark.slow
def test_choices_are_wrapped_on_a_narrow_terminal() -> None:
    summary = registry.entry("longformer").card.summary
    terminal = Terminal("train", "--interactive", *SHORT, columns=60)
    terminal.until("the mechanism")
    terminal.until("longformer")
    terminal.type("longformer")
    terminal.until("/ ")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130, terminal.shown
    assert len(summary) > 60
    assert summary in " ".join(terminal.shown.split())


@pytest.mark.slow
def test_a_choice_that_does_not_fit_is_asked_again_on_a_terminal() -> None:
    flags = ("--model=multihead", "--task=digits", "--embed_dim=10", "--num_heads=10", "--bias")
    terminal = Terminal(
        "train", "--interactive", *SHORT, *flags, "--layers=1", "--batch_size=32", "--learning_rate=0.01"
    )
    terminal.until("how place matters")
    terminal.type(DOWN + ENTER)
    terminal.until("rotary positions need an even")
    terminal.until("how place matters")
    terminal.type(DOWN + DOWN + ENTER)
    terminal.until("the position embedding that")
    terminal.type(DOWN + ENTER)
    terminal.until("save_path")
    terminal.type(ENTER)
    terminal.until("train now")
    terminal.type("y")
    assert terminal.leave() == 0, terminal.shown
    model = Run.open(Path("run")).settings.model
    assert (model.options["positions"], model.position_embedding) == ("alibi", "sinusoidal")


@pytest.mark.slow
def test_beside_the_choices_one_may_write_on_a_terminal() -> None:
    flags = ("--model=multihead", "--task=digits", "--embed_dim=8", "--num_heads=2", "--bias", "--layers=1")
    more = ("--batch_size=32", "--learning_rate=0.01", "--position_embedding=none", "--save_path=x.pth")
    terminal = Terminal("train", "--interactive", *SHORT, *flags, *more)
    terminal.until("how place matters")
    terminal.until("another value")
    terminal.type(DOWN * 4 + ENTER)
    terminal.until("another value: how place matters")
    terminal.until("none")
    terminal.type("\x7f" * 4 + "t5(buckets=3)" + ENTER)
    terminal.until("buckets is a whole number from 4")
    terminal.type("\x7f\x7f8)" + ENTER)
    terminal.until("train now")
    terminal.type("y")
    assert terminal.leave() == 0, terminal.shown
    assert Run.open(Path("run")).settings.model.options["positions"] == "t5(buckets=8)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "question", "keys", "code"),
    [
        ((), "the mechanism", CTRL_C, 130),
        (("--model=selfhead", "--task=digits"), "(embed_dim)", CTRL_C, 130),
        (("--model=selfhead", "--task=digits"), "(embed_dim)", "\x7f\x7f" + CTRL_D, 0),
    ],
)
def test_leaving_a_terminal(flags: tuple[str, ...], question: str, keys: str, code: int) -> None:
    terminal = Terminal("train", "--interactive", *SHORT, *flags)
    terminal.until(question)
    terminal.type(keys)
    assert terminal.leave() == code, terminal.shown
    assert ("stopped" if code else "left; nothing was started") in terminal.shown
    assert "Traceback" not in terminal.shown
    assert below(Path()) == {}
