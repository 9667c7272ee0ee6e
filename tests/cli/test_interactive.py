"""``--interactive`` with piped answers and on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from calls import CommandResult, call, contents_of, output_of, write_files

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.training.runs import Run

pexpect = pytest.importorskip("pexpect")  # not on Windows

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
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


def answered(typed: str, *words: str) -> CommandResult:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO(typed))
        return call("train", "--interactive", *SHORT, *words)


def flat(done: CommandResult) -> str:
    """What was printed, whatever the width of the terminal."""
    return " ".join(done.out.split())


def same_as(done: CommandResult) -> list[str]:
    """The words of the equivalent command that is shown."""
    return shlex.split(done.out.split("equivalent command:\n  ")[1].split("\n")[0])


def test_empty_answers_take_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks.few_shot.baselines", lambda *_: [])  # they take seconds
    done = answered("\n" * 20)
    assert (done.code, done.err) == (0, "")
    assert all(question in done.out for question in QUESTIONS)
    settings = Run.open(Path("run")).settings
    assert (settings.model.model, settings.data.task, settings.model.embed_dim) == ("multihead", tasks.DEFAULT, 64)


def test_choices_by_name_and_by_number() -> None:
    """Also: the card of each model is shown beside its name."""
    tail = "\n16\n\n\n\n\n\nno\n"
    by_name = answered("selfhead\ndigits" + tail)
    number = re.search(r"^ +(\d+)  selfhead +.*head", by_name.out, re.MULTILINE)
    task = re.search(r"^ +(\d+)  digits ", by_name.out, re.MULTILINE)
    assert number is not None
    assert task is not None
    by_number = answered(f"{number[1]}\n{task[1]}{tail}")
    assert same_as(by_name) == same_as(by_number)
    assert by_name.code == by_number.code == 0
    assert "nothing was started" in by_name.out
    assert contents_of(Path()) == {}


def test_the_equivalent_command_trains_the_same_network() -> None:
    done = answered("multihead\ndigits\n24\n3\n\nrotary(base=500)\n2\n1\n16\n0.01\n\nyes\n")
    assert done.code == 0, done
    program, *words = same_as(done)
    assert program == "attnlab"
    words[words.index("run")] = "again"
    output_of(*words)
    assert Path("run/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    model = Run.open(Path("run")).settings.model
    assert (model.embed_dim, model.options["num_heads"], model.layers) == (24, 3, 1)
    assert (model.options["positions"], model.position_embedding) == ("rotary(base=500)", "sinusoidal")


def test_invalid_answers_are_asked_again() -> None:
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
    done = answered("\n".join(typed) + "\n")
    assert done.code == 0, done
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
        "buckets must be an integer from 4 to 65536, not 3",
        "unknown position_embedding 'waves'; there are: learned, sinusoidal, none",
        "rotary positions need an even head_dim, not 1",
        "layers must be from 1 to 1,000, not 0",
        "batch_size must be from 1 to 10,000,000, not 0",
        "learning_rate must be from 1e-12 to 100, not nan",
        "--save_path x.bin must end in .safetensors, .pth or .pt",
        "cannot write --save_path /proc/none/x.pth",
        "unknown start 'perhaps'",
    ):
        assert words in flat(done), words
    assert "--num_heads 10" in " ".join(same_as(done))
    assert contents_of(Path()) == {}


def test_given_flags_are_not_asked_for() -> None:
    words = ("--model", "multihead", "--embed-dim=16", "--num_heads", "2", "--layers", "1", "--no-bias")
    done = answered("\n" * 9, *words)
    assert done.code == 0, done
    for question in ("the mechanism [", "embed_dim)", "num_heads)", "layers)", "(bias)", "optimizer steps"):
        assert question not in done.out
    for question in ("the task", "(batch_size)", "(learning_rate)", "train now"):
        assert question in done.out
    model = Run.open(Path("run")).settings.model
    assert (model.embed_dim, model.options["num_heads"], model.options["bias"]) == (16, 2, False)


def test_the_default_number_of_heads_divides_the_width() -> None:
    done = answered("multihead\ndigits\n35\n" + "\n" * 8 + "no\n")
    assert done.code == 0, done
    assert "(num_heads) [7]" in done.out


def test_a_file_and_its_column() -> None:
    rows = "".join(f"{i % 7},{'xy'[i % 7 > 3]},same\n" for i in range(89))
    write_files(Path(), {"mine.csv": "number,letter,one\n" + rows, "ragged.csv": "a,b\n1,2\n3\n"})
    Path("folder.csv").mkdir()
    names = ["", "none.csv", "x.doc", "folder.csv", "ragged.csv", "mine.csv"]
    typed = ["multihead", "my own file", *names, "size", "one", "letter", "16", "2"]
    done = answered("\n".join(typed) + "\n" * 9)
    assert done.code == 0, done
    for words in (
        "my own file a table, a text or arrays (",
        "give the name of a file",
        "none.csv does not exist",
        "no task reads .doc (x.doc); give one of ",
        "folder.csv is a folder; give a file in it",
        "ragged.csv cannot be read as a table: line 3 has 1 field, but the header has 2",
        "unknown target 'size'; there are: number, letter, one",
        "every row is of one class (same)",
        "the column to predict [one]:",
    ):
        assert words in flat(done), words
    settings = Run.open(Path("run")).settings
    assert (settings.data.target, settings.data.task) == ("letter", "table")


@pytest.mark.parametrize(
    ("name", "text", "question"),
    [
        (
            "mine.csv",
            "number,other,letter\n" + "".join(f"{i % 7},{i % 5},{'xy'[i % 7 > 3]}\n" for i in range(89)),
            "the column to predict [letter]: letter the embedding width (embed_dim)",
        ),
        (
            "wide.csv",  # many columns are not listed
            ",".join(f"c{i}" for i in range(211)) + "\n" + ",".join(["1"] * 211) + "\n",
            "): wide.csv the column to predict [c210]:",
        ),
        (
            "mine.txt",
            "".join(f"the {i} quick brown foxes jump over {i} dogs\n\n" for i in range(97)),
            "): mine.txt the embedding width (embed_dim)",
        ),
    ],
)
def test_the_last_column_is_the_default_target_and_a_text_has_none(name: str, text: str, question: str) -> None:
    write_files(Path(), {name: text})
    done = answered(f"my own file\n{name}\n\n", "--model=selfhead")
    assert "my own file your file (" in flat(done)
    assert question in flat(done)
    assert "the input ended before the last question" in done.err


@pytest.mark.parametrize("task", ["table", "arrays"])
def test_a_task_that_needs_a_file_is_not_listed(task: str) -> None:
    assert f"unknown task '{task}'; " in flat(answered(f"multihead\n{task}\n"))
    assert f"{task} has no built-in data; give a file" in flat(answered("multihead\n\n", "--task", task))


def test_lines_are_wrapped_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (40, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        done = answered("multihed\nlongformer\ndigits\n")
        assert done.code == 2
        assert max(map(len, done.out.splitlines())) <= columns
        for text in (registry.entry("longformer").card.summary, "unknown model 'multihed'; did you mean multihead?"):
            assert text in flat(done)
    monkeypatch.setenv("COLUMNS", "40")
    done = answered("\n" * 5 + "no\n", "--model=selfhead", "--layers=1", "--embed_dim=8")
    assert same_as(done)[-2:] == ["run", "--quiet"], "the equivalent command is not wrapped"


class Interrupted(io.StringIO):
    def readline(self, *_: object) -> str:
        raise KeyboardInterrupt


CLOSED = "error: --interactive reads answers from standard input, which is closed; give the settings as flags"
NOT_UTF_8 = io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8")
closed_stream = io.StringIO()
closed_stream.close()


@pytest.mark.parametrize(
    ("stdin", "error", "code"),
    [
        (None, CLOSED, 2),
        (closed_stream, CLOSED, 2),
        (NOT_UTF_8, "error: the input is not valid UTF-8; nothing was started", 2),
        (Interrupted(), "stopped", 130),
        *(
            (io.StringIO(typed), "error: the input ended before the last question; nothing was started", 2)
            for typed in ("", "multihead\n", "multihead\ndigits\n" + "\n" * 6)
        ),
    ],
)
def test_unreadable_input(stdin: object, error: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    done = call("train", "--interactive", *SHORT)
    assert (done.code, done.err) == (code, f"{error}\n")
    assert contents_of(Path()) == {}


def test_an_invalid_flag_starts_nothing() -> None:
    done = answered("\n" * 20, "--embed_dim=0")
    assert (done.code, done.err) == (2, "error: the input ended before the last question; nothing was started\n")
    assert contents_of(Path()) == {}


# On a terminal


DOWN, ENTER, CTRL_C, CTRL_D, ERASE = "\x1b[B", "\r", "\x03", "\x04", "\x7f"
SMALL = ("--layers=1", "--batch_size=32", "--learning_rate=0.01")


def dialogue(*steps: str, flags: tuple[str, ...], code: int = 0, columns: int = 100) -> str:
    """Everything shown while keys are typed: ``steps`` alternates between a text to wait for and the keys."""
    words = ["-m", "attnlab", "train", "--interactive", *SHORT, *flags]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40", "PROMPT_TOOLKIT_NO_CPR": "1"}
    terminal = pexpect.spawn(sys.executable, words, encoding="utf-8", env=env, dimensions=(40, columns), timeout=120)
    raw, start = "", 0
    for text, keys in zip(steps[::2], steps[1::2], strict=True):
        while text not in (shown := CONTROL.sub("", raw))[start:]:
            raw += terminal.read_nonblocking(65536, timeout=120)
        start = shown.index(text, start) + len(text)
        terminal.send(keys)
    with contextlib.suppress(pexpect.EOF):
        while True:
            raw += terminal.read_nonblocking(65536, timeout=120)
    shown = CONTROL.sub("", raw)
    assert terminal.wait() == code, shown
    assert "Traceback" not in shown
    return shown


def test_arrow_keys_and_an_invalid_answer() -> None:
    dialogue(
        *("the mechanism", "", "multihead", "selfhead" + DOWN + ENTER),  # typing filters the choices
        *("the task", "", "digits", ENTER),
        *("(embed_dim)", ERASE * 2 + "0" + ENTER, "embed_dim must be from 1 to 65,536, not 0", ERASE + "16" + ENTER),
        *("the position embedding that", ENTER, "save_path", ENTER, "equivalent command", "", "train now", "y"),
        flags=SMALL,
    )
    model = Run.open(Path("run")).settings.model
    assert (model.model, model.embed_dim) == ("selfhead", 16)


def test_an_invalid_choice_is_asked_again_and_another_value_can_be_typed() -> None:
    shown = dialogue(
        *("(positions)", DOWN + ENTER, "rotary positions need an even", ""),
        *("(positions)", "", "another value", DOWN * 4 + ENTER, "another value: ", ""),
        *("none", ERASE * 4 + "t5(buckets=3)" + ENTER, "buckets must be an integer from 4", ERASE * 2 + "8)" + ENTER),
        *("the position embedding that", DOWN + ENTER, "save_path", ENTER, "train now", "n"),
        flags=("--model=multihead", "--task=digits", "--bias", "--embed_dim=10", "--num_heads=10", *SMALL),
    )
    assert "--position_embedding sinusoidal" in shown
    assert "--positions 't5(buckets=8)'" in shown


def test_choices_are_wrapped_on_a_narrow_terminal_and_can_be_left() -> None:
    summary = registry.entry("longformer").card.summary
    steps = ("the mechanism", "", "longformer", "longformer", "/ ", CTRL_C)
    shown = dialogue(*steps, flags=(), code=130, columns=60)
    assert len(summary) > 60
    assert summary in " ".join(shown.split())
    assert "stopped" in shown
    assert contents_of(Path()) == {}


@pytest.mark.parametrize(("leave", "code"), [(CTRL_C, 130), (ERASE * 2 + CTRL_D, 0)])
def test_enter_has_no_effect_while_no_choice_matches_and_a_question_can_be_left(leave: str, code: int) -> None:
    shown = dialogue(
        *("the task", "", "my own file", "indxction" + ENTER, "\x07", ERASE * 9 + "induction" + ENTER),
        *("(embed_dim)", leave),
        flags=("--model", "selfhead"),
        code=code,
    )
    assert "the task induction" in shown
    assert ("stopped" if code else "left; nothing was started") in shown
    assert contents_of(Path()) == {}
