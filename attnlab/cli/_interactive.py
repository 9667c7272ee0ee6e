"""``--interactive``: ask for every setting that is not given as a flag, then print the equivalent command.

Each answer goes through the same parser and the same checks as a flag. On a terminal there are arrow keys and
completion; piped input is read line by line, and a choice may be given by its number.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli._console import say
from attnlab.cli._flags import TrainArgs, given_flags, parse_train_args
from attnlab.cli._format import command_line
from attnlab.nn.attention import divisors_near
from attnlab.training.settings import Settings, choices_of, flag_name, option_flags
from attnlab.utils.errors import UnknownNameError, UserError
from attnlab.utils.escape import one_line, visible

CUSTOM = "\0"
"""The choice to type an answer that is not listed."""
MY_FILE = "my own file"
"""The choice to train on a file; its name decides the task."""
POSITION_EMBEDDINGS = {
    "learned": "one vector per position, up to the training length",
    "sinusoidal": "fixed sines and cosines, for any length",
    "none": "none: the mechanism encodes positions, or order does not matter",
}
MAX_CHOICES = 200
"""Longer lists of columns are not printed."""

Validator = Callable[[str], object]
"""Raises UserError for a wrong answer."""


@dataclass(frozen=True)
class Question:
    """One setting to ask for.

    ``choices`` maps each name to a description; ``open`` allows other answers, too.
    """

    name: str
    text: str
    default: str
    choices: dict[str, str] = field(default_factory=dict)
    open: bool = False


def ask_for_settings(arguments: Sequence[str]) -> list[str] | None:
    """The arguments, with the answers to what they leave open as flags; None if the user decides not to train.

    Raises:
        UserError: for an invalid flag, or input that ends before the last question.
        KeyboardInterrupt: on Ctrl-C.
    """
    arguments = [a for a in arguments if a.replace("-", "_") not in ("__interactive", "__no_interactive")]
    args = parse_train_args(arguments, validate=False)
    if args.output.resume is not None:
        raise UserError("--resume uses the settings of the run; leave out --interactive or --resume")
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("--interactive reads answers from standard input, which is closed; give the settings as flags")
    terminal = sys.stdin.isatty() and sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
    prompt = ask_on_terminal if terminal else ask_in_lines
    try:
        arguments = _Dialogue(args.arguments, prompt).run()
        say(f"\nequivalent command:\n  {command_line(parse_train_args(arguments))}\n", flush=True)
        if prompt(Question("start", "train now", "yes", {"yes": "", "no": ""}), lambda _: None) == "no":
            say("nothing was started")
            return None
    except EOFError:
        if terminal:
            say("left; nothing was started")
            return None
        raise UserError("the input ended before the last question; nothing was started") from None
    except UnicodeDecodeError:
        raise UserError("the input is not valid UTF-8; nothing was started") from None
    return arguments


class _Dialogue:
    """The questions in order; ``arguments`` grows by one flag per answer."""

    def __init__(self, arguments: list[str], prompt: Callable[[Question, Validator], str]) -> None:
        self.arguments = arguments
        self.prompt = prompt
        self._last: tuple[tuple[str, ...], TrainArgs] | None = None

    def run(self) -> list[str]:
        """Ask every question that the arguments leave open."""
        self._ask_for_model_and_data()
        self._ask("embed_dim", "the embedding width (embed_dim)", self.settings.model.embed_dim)
        self._ask_for_mechanism_options()
        settings = self.settings
        text = "the position embedding that is added to each token (position_embedding)"
        self._ask("position_embedding", text, settings.model.position_embedding, POSITION_EMBEDDINGS)
        self._ask("layers", "blocks of [mechanism, MLP] (layers)", settings.model.layers)
        if "steps" not in given_flags(self.arguments):
            if settings.training.epochs is None:
                self._ask("steps", "optimizer steps (steps)", settings.training.steps)
            else:
                self._ask("epochs", "passes over the training data (epochs)", settings.training.epochs)
        self._ask("batch_size", "sequences per step (batch_size)", settings.training.batch_size)
        self._ask("learning_rate", "the peak learning rate (learning_rate)", f"{settings.training.learning_rate:g}")
        self._ask("save_path", "also save the network to a file (save_path; empty for the run folder only)", "")
        return self.arguments

    @property
    def settings(self) -> Settings:
        """The settings so far."""
        return self._parse().settings

    def _parse(self, *more: str) -> TrainArgs:
        words = (*self.arguments, *more)
        if self._last is None or self._last[0] != words:  # parsing takes a moment
            self._last = words, parse_train_args(words, validate=False)
        return self._last[1]

    def _ask(
        self,
        name: str,
        text: str,
        default: Any,
        choices: dict[str, str] | None = None,
        *,
        open: bool = False,
        validator: Validator = lambda _: None,
    ) -> str:
        """The answer, already added to the arguments; empty if the flag was given."""
        if name in self._parse().given:
            return ""
        question = Question(name, text, str(default), choices or {}, open)

        def check(answer: str) -> None:
            _check_flags([*self.arguments, *_as_flag(question, answer)])
            validator(answer)

        answer = self.prompt(question, check)
        self.arguments.extend(_as_flag(question, answer))
        return answer

    def _ask_for_model_and_data(self) -> None:
        models = {name: registry.entry(name).card.summary for name in registry.names()}
        text = 'the mechanism, or a pattern of several such as "3*linear,multihead"'
        self._ask("model", text, "multihead" if "multihead" in models else next(iter(models)), models, open=True)
        entries = [tasks.entry(name) for name in tasks.names()]
        suffixes = " ".join(suffix for entry in entries for suffix in entry.suffixes)
        if "data" not in given_flags(self.arguments):
            choices = {entry.name: entry.summary for entry in entries if not entry.needs_data}
            choices[MY_FILE] = f"a table, a text or arrays ({suffixes})"
            if self._ask("task", "the task", tasks.DEFAULT, choices) == MY_FILE:
                self._ask("data", f"your file ({suffixes})", "", validator=partial(_check_file, None))
        task = tasks.entry(self.settings.data.task)
        if task.suffixes:
            text = " ".join(task.suffixes) + ("" if task.needs_data else "; empty for the data of the task")
            self._ask("data", f"your file ({text})", "", validator=partial(_check_file, task))
        data = self.settings.data.data
        columns = {} if data is None else tasks.load(task.name).columns(Path(data))
        if columns:
            listed = columns if len(columns) < MAX_CHOICES else {}
            self._ask("target", "the column to predict", list(columns)[-1], listed, validator=self._check_target)

    def _ask_for_mechanism_options(self) -> None:
        model = self.settings.model
        for flag, (name, option) in option_flags(model.model).items():
            if flag not in model.options or option.name == "causal":
                continue
            default, choices = model.options[flag], choices_of(option, name)
            if option.name == "num_heads" and model.embed_dim % default:  # the largest count below that divides
                default = max(n for n in divisors_near(model.embed_dim, default, 2) if n <= default or n == 1)
            if isinstance(default, bool):
                default = "yes" if default else "no"
            self._ask(
                flag,
                f"{option.help.rstrip('.')} ({flag})",
                "" if default is None else default,
                dict.fromkeys(choices.names, ""),
                open=choices.open,
                validator=partial(self._check_option, flag),
            )

    def _check_target(self, target: str) -> None:
        from attnlab.training.experiment import load_task_data

        load_task_data(self._parse(f"--target={target}").settings)

    def _check_option(self, name: str, answer: str) -> None:
        """Build the mechanism with this option and the earlier answers."""
        import torch

        model = self._parse(*([f"--{name}={answer}"] if answer not in ("", "yes", "no") else [])).settings.model
        flags = option_flags(model.model)
        mechanism = flags[name][0]
        options = {o.name: model.options[flag] for flag, (of, o) in flags.items() if of == mechanism}
        try:
            with torch.device("meta"):  # allocates nothing
                registry.load(mechanism)(embed_dim=model.embed_dim, **options)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from None


def _as_flag(question: Question, answer: str) -> list[str]:
    if answer in ("", MY_FILE):
        return []
    if set(question.choices) == {"yes", "no"}:
        return [f"--{flag_name(question.name, negated=answer == 'no')}"]
    return [f"--{question.name}={answer}"]


def _check_flags(arguments: list[str]) -> None:
    from attnlab.training import folder

    output = parse_train_args(arguments).output
    if output.save_path is not None:
        folder.check_save_path(Path(output.save_path), overwrite=output.overwrite)


def _check_file(task: tasks.Entry | None, answer: str) -> None:
    """Raise UserError for a file that the task, or for None any task, cannot read."""
    path = Path(answer)
    if not answer:
        if task is None:
            raise UserError("give the name of a file")
        if task.needs_data:
            raise UserError(f"{task.name} has no built-in data; give a file")
        return
    name = tasks.for_file(path) if task is None else task.name
    if not path.is_file():
        raise UserError(f"{answer} {'is a folder; give a file in it' if path.is_dir() else 'does not exist'}")
    tasks.load(name).columns(path)


def _error(validator: Validator, answer: str) -> str | None:
    """What is wrong with an answer."""
    try:
        validator(answer)
    except UserError as error:
        return str(error)
    return None


def ask_in_lines(question: Question, validator: Validator) -> str:
    """Ask in plain lines; a choice may be given by its number."""
    names = list(question.choices)
    width, digits = max(map(len, names), default=0), len(str(len(names)))
    if any(question.choices.values()):
        for number, (name, about) in enumerate(question.choices.items(), 1):
            say(_wrap(f"  {number:>{digits}}  {name:<{width}}  {about}", digits + width + 6))
    hint = f" [{question.default}]" if question.default else ""
    while True:
        answer = input(visible(_wrap(f"{question.text}{hint}:", 2, reserved=12)) + " ").strip() or question.default
        if not sys.stdin.isatty():
            say(answer, flush=True)
        if answer not in names and answer.isdecimal() and 1 <= int(answer) <= len(names):
            answer = names[int(answer) - 1]
        if names and not question.open and answer not in names:
            error: str | None = str(UnknownNameError(question.name, answer, names))
        else:
            error = _error(validator, answer)
        if error is None:
            return answer
        say(_wrap(f"  {error}", 2), flush=True)


def ask_on_terminal(question: Question, validator: Validator) -> str:
    """Ask with arrow keys and completion."""
    import questionary

    names, text = list(question.choices), _wrap(question.text, 2, reserved=3)
    if names == ["yes", "no"]:
        return "yes" if questionary.confirm(text, default=question.default == "yes").unsafe_ask() else "no"
    if names:
        if question.default and question.default not in names:
            names.append(question.default)
        width = max(map(len, names))
        titles = [one_line(f"{name:<{width}}  {question.choices.get(name, '')}".rstrip()) for name in names]
        # The pointer takes three columns, and longer lines are cut off.
        choices = [
            questionary.Choice(_wrap(title, width + 5, reserved=4), name)
            for name, title in zip(names, titles, strict=True)
        ]
        if question.open:
            choices.append(questionary.Choice("another value", CUSTOM))
        while (chosen := _select(text, choices, question.default or None)) != CUSTOM:
            error = _error(validator, chosen)
            if error is None:
                return str(chosen)
            say(_wrap(f"  {error}", 2), flush=True)
        text = _wrap(f"another value: {question.text}", 2, reserved=3)
    make = questionary.path if question.name in ("data", "save_path") else questionary.text
    answer = make(text, default=question.default, validate=lambda reply: _error(validator, reply.strip()) or True)
    return str(answer.unsafe_ask()).strip()


def _select(text: str, choices: list[Any], default: str | None) -> Any:
    """Ask for one of the choices; Enter has no effect while the typed text matches none of them.

    questionary 2.1 lists all choices then (``InquirerControl.filtered_choices``), and Enter would take the first.
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


def _wrap(text: str, indent: int, *, reserved: int = 0) -> str:
    """``text`` in lines that fit the terminal, without its ``reserved`` columns; the lines after the first indented."""
    columns = max(shutil.get_terminal_size().columns - reserved, 20)
    return textwrap.fill(text, columns, subsequent_indent=" " * min(indent, columns // 3), break_on_hyphens=False)
