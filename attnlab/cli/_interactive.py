"""``--interactive``: ask for what was not given as a flag, then show the command that says the same.

Every answer is put to the same parser and the same checks as a flag, at once. On a terminal there are arrow
keys and completion; from a pipe there are plain lines, in which a choice may be given by its number.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli._console import say
from attnlab.cli._flags import given_flags, understand
from attnlab.cli._words import command_line
from attnlab.nn.attention import divisors_near
from attnlab.training.settings import choices_of
from attnlab.utils.errors import UnknownNameError, UserError
from attnlab.utils.escape import one_line, visible

OTHER = "\0"
"""Chosen to give an answer in one's own words."""
OWN_FILE = "my own file"
"""Chosen instead of a task: the task is then the one that reads the file."""
MANY = 200
"""From so many choices on they are not listed."""

Check = Callable[[str], str | None]
"""What is wrong with an answer, in one line; None where nothing is."""


@dataclass(frozen=True)
class Question:
    """One thing to ask; ``choices`` are names with a line about each, ``open``: other words may do as well."""

    name: str
    text: str
    default: str
    choices: dict[str, str] = field(default_factory=dict)
    open: bool = False


class LeftError(Exception):
    """The one who was asked has gone."""


def ask(arguments: Sequence[str]) -> list[str] | None:
    """Ask for everything that is not among ``arguments``.

    Returns:
        The arguments with the answers as flags; None where it was decided not to train.

    Raises:
        UserError: a flag that cannot be, or input that ends before the last question.
        KeyboardInterrupt: Ctrl-C.
    """
    words = [w for w in arguments if w.replace("-", "_") not in ("__interactive", "__no_interactive")]
    asked = understand(words, validate=False)
    if asked.output.resume is not None:
        raise UserError("--resume goes on with the settings of the run, so there is nothing to ask; leave one out")
    if sys.stdin is None or sys.stdin.closed:
        raise UserError(
            "--interactive reads answers from the standard input, which is closed; give the settings as flags"
        )
    terminal = sys.stdin.isatty() and _is_terminal(sys.stdout)
    put = on_terminal if terminal else on_lines
    try:
        words = _answers(words, put)
        asked = understand(words)
        say(f"\nthe same as a command:\n  {command_line(asked)}\n", flush=True)
        if put(Question("start", "train now", "yes", {"yes": "", "no": ""}), _no_objection) == "no":
            say("nothing was started")
            return None
    except (LeftError, EOFError):
        if terminal:
            say("left; nothing was started")
            return None
        raise UserError("the input ended before the last question; nothing was started") from None
    except UnicodeDecodeError:
        raise UserError("the input is not valid UTF-8; nothing was started") from None
    return words


def _answers(words: list[str], put: Callable[[Question, Check], str]) -> list[str]:
    """The words with an answer appended for every question that they leave open."""

    def settle(question: Question, also: Check = lambda _: None) -> str:
        if question.name in given_flags(words):
            return ""
        answer = put(question, lambda given: _objection([*words, *_as_flag(question, given)]) or also(given))
        words.extend(_as_flag(question, answer))
        return answer

    models = {name: registry.entry(name).card.summary for name in registry.names()}
    settle(Question("model", "which mechanism", "multihead" if "multihead" in models else next(iter(models)), models))
    entries = [tasks.entry(name) for name in tasks.names()]
    suffixes = " ".join(suffix for entry in entries for suffix in entry.suffixes)
    if "data" not in given_flags(words):
        known = {entry.name: entry.summary for entry in entries if not entry.needs_data}
        known[OWN_FILE] = f"a table, a text or arrays ({suffixes})"
        if settle(Question("task", "what to train it on", "digits", known)) == OWN_FILE:
            settle(Question("data", f"your file ({suffixes})", ""), _readable(None))
    task = tasks.entry(understand(words, validate=False).settings.data.task)
    if task.suffixes:
        without = "" if task.needs_data else "; empty for what comes with the task"
        settle(Question("data", f"your file ({' '.join(task.suffixes)}{without})", ""), _readable(task))
    data = understand(words, validate=False).settings.data.data
    columns = {} if data is None else tasks.load(task.name).columns(Path(data))
    if columns:
        shown_columns = columns if len(columns) < MANY else {}
        question = Question("target", "the column to predict", list(columns)[-1], shown_columns)
        settle(question, lambda answer: _unusable(words, answer))

    settings = understand(words, validate=False).settings
    settle(Question("embed_dim", "the width of every token (embed_dim)", str(settings.model.embed_dim)))
    for option in registry.entry(settings.model.model).options:
        if option.name in settings.model.options and option.name != "causal":
            default = _fitting(option.name, settings.model.options[option.name], words)
            choices = choices_of(option, settings.model.model)
            shown = (
                ("yes" if default else "no") if isinstance(default, bool) else "" if default is None else str(default)
            )
            settle(
                Question(
                    option.name,
                    f"{option.help.rstrip('.')} ({option.name})",
                    shown,
                    dict.fromkeys(choices.names, ""),
                    choices.open,
                ),
                _built(words, option.name),
            )
    settle(
        Question(
            "position_embedding",
            "what is added to each token for its place (position_embedding)",
            settings.model.position_embedding,
            {
                "learned": "a vector for each place, up to the length trained on",
                "sinusoidal": "waves, which have no end",
                "none": "nothing: the mechanism tells places itself, or order does not matter",
            },
        )
    )
    settle(Question("layers", "blocks of [mechanism, MLP] (layers)", str(settings.model.layers)))
    if "steps" not in given_flags(words):
        if settings.training.epochs is None:
            settle(Question("steps", "optimizer steps (steps)", str(settings.training.steps)))
        else:
            settle(Question("epochs", "passes over the data (epochs)", str(settings.training.epochs)))
    settle(Question("batch_size", "sequences a step (batch_size)", str(settings.training.batch_size)))
    settle(
        Question("learning_rate", "the highest learning rate (learning_rate)", f"{settings.training.learning_rate:g}")
    )
    settle(Question("save_path", "save the network to a file too (save_path; empty for the run folder alone)", ""))
    return words


def _as_flag(question: Question, answer: str) -> list[str]:
    if answer in ("", OWN_FILE):
        return []
    if set(question.choices) == {"yes", "no"}:
        return [f"--{question.name}" if answer == "yes" else f"--no_{question.name}"]
    return [f"--{question.name}={answer}"]


def _objection(words: list[str]) -> str | None:
    """What the command line would say to these words."""
    from attnlab.training import folder

    try:
        output = understand(words).output
        if output.save_path is not None:
            folder.check_save_path(Path(output.save_path), overwrite=output.overwrite)
    except UserError as error:
        return str(error)
    return None


def _readable(task: tasks.Entry | None) -> Check:
    """Whether a file can be read by the task, or by any for None; without it where the task has data of its own."""

    def check(answer: str) -> str | None:
        if not answer and task is None:
            return "give the name of a file"
        if not answer and task is not None:
            return f"{task.name} has no data of its own; give a file" if task.needs_data else None
        path = Path(answer)
        try:
            name = tasks.for_file(path) if task is None else task.name
            if path.is_dir():
                return f"{answer} is a folder; give a file in it"
            if not path.is_file():
                return f"{answer} is not there"
            tasks.load(name).columns(path)
        except UserError as error:
            return str(error)
        return None

    return check


def _unusable(words: list[str], target: str) -> str | None:
    """What keeps a column from being predicted."""
    from attnlab.training.experiment import load_task_data

    try:
        load_task_data(understand([*words, f"--target={target}"], validate=False).settings)
    except UserError as error:
        return str(error)
    return None


def _no_objection(_: str) -> str | None:
    return None


def _built(words: list[str], name: str) -> Check:
    """Whether the mechanism can be built with this option beside those answered so far."""

    def check(answer: str) -> str | None:
        flag = [f"--{name}={answer}"] if answer not in ("", "yes", "no") else []
        model = understand([*words, *flag], validate=False).settings.model
        return _refusal(model.model, model.embed_dim, model.options)

    return check


def _refusal(model: str, embed_dim: int, options: dict[str, Any]) -> str | None:
    import torch

    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated
            registry.load(model)(embed_dim=embed_dim, **options)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _fitting(name: str, default: Any, words: list[str]) -> Any:
    """The default, or for heads that do not divide the width the nearest count that does."""
    embed_dim = understand(words, validate=False).settings.model.embed_dim
    if name == "num_heads" and embed_dim % default:
        return max(n for n in divisors_near(embed_dim, default, 2) if n <= default or n == 1)
    return default


def on_lines(question: Question, check: Check) -> str:
    """Ask in plain lines; a choice may be given by its number."""
    names = list(question.choices)
    width = max(map(len, names), default=0)
    if any(question.choices.values()):
        digits = len(str(len(names)))
        for number, (name, about) in enumerate(question.choices.items(), 1):
            say(_wrapped(f"  {number:>{digits}}  {name:<{width}}  {about}", digits + width + 6))
    hint = f" [{question.default}]" if question.default else ""
    while True:
        answer = input(visible(_wrapped(f"{question.text}{hint}:", 2, less=12)) + " ").strip()
        if not sys.stdin.isatty():
            say(answer or question.default, flush=True)
        answer = answer or question.default
        if answer not in names and answer.isdecimal() and 1 <= int(answer) <= len(names):
            answer = names[int(answer) - 1]
        wrong = _not_among(question, answer) or check(answer)
        if wrong is None:
            return answer
        say(_wrapped(f"  {wrong}", 2), flush=True)


def _wrapped(text: str, indent: int, *, less: int = 0) -> str:
    """``text`` in lines that fit the terminal, those after the first indented.

    Args:
        text: one line.
        indent: spaces before the lines after the first; on a narrow terminal fewer.
        less: columns that are not available.
    """
    columns = max(shutil.get_terminal_size().columns - less, 20)
    return textwrap.fill(text, columns, subsequent_indent=" " * min(indent, columns // 3), break_on_hyphens=False)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def on_terminal(question: Question, check: Check) -> str:
    """Ask with arrow keys and completion."""
    import questionary

    names, text = list(question.choices), _wrapped(question.text, 2, less=3)
    if names == ["yes", "no"]:
        answer = questionary.confirm(text, default=question.default == "yes").unsafe_ask()
        return "yes" if answer else "no"
    if names:
        if question.default and question.default not in names:
            names.append(question.default)
        width = max(map(len, names))
        titles = [one_line(f"{name:<{width}}  {question.choices.get(name, '')}".rstrip()) for name in names]
        # Three columns are taken by the pointer; the control cuts off longer lines.
        choices = [
            questionary.Choice(_wrapped(title, width + 5, less=4), name)
            for name, title in zip(names, titles, strict=True)
        ]
        if question.open:
            choices.append(questionary.Choice("write it out", OTHER))
        while True:
            chosen = _select(text, choices, question.default or None)
            if chosen == OTHER:
                text = _wrapped(f"in your own words: {question.text}", 2, less=3)
                break
            wrong = check(chosen)
            if wrong is None:
                return str(chosen)
            say(_wrapped(f"  {wrong}", 2), flush=True)
    make = questionary.path if question.name in ("data", "save_path") else questionary.text
    prompt = make(text, default=question.default, validate=lambda given: check(given.strip()) or True)
    return str(prompt.unsafe_ask()).strip()


def _select(text: str, choices: list[Any], default: str | None) -> Any:
    """Ask for one of the choices; while what was typed is in none of them, Enter has no effect.

    questionary 2.1 shows all choices then (``InquirerControl.filtered_choices``), and Enter would take the first.
    """
    import questionary
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings
    from prompt_toolkit.keys import Keys
    from questionary.prompts.common import InquirerControl

    question = questionary.select(text, choices, default=default, use_search_filter=True, use_jk_keys=False)
    windows = question.application.layout.find_all_windows()
    control = next(w.content for w in windows if isinstance(w.content, InquirerControl))

    @Condition
    def nothing_matches() -> bool:
        typed = (control.search_filter or "").lower()
        return not any(typed in str(choice.title).lower() for choice in control.choices)

    enter = KeyBindings()
    enter.add(Keys.ControlM, eager=True, filter=nothing_matches)(lambda event: event.app.output.bell())
    known = question.application.key_bindings
    question.application.key_bindings = enter if known is None else merge_key_bindings([known, enter])  # the last wins
    return question.unsafe_ask()


def _not_among(question: Question, answer: str) -> str | None:
    if not question.choices or question.open or answer in question.choices:
        return None
    return str(UnknownNameError(question.name, answer, question.choices))
