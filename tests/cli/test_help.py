"""Help and light commands do not import torch, and the flags do what the help describes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from calls import call, output_of

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli import commands
from attnlab.cli._flags import given_flags, parse_train_args
from attnlab.cli._format import command_line
from attnlab.cli._parse import note_renamed
from attnlab.training.report import options
from attnlab.training.settings import defaults, mechanism_options

ROOT = Path(__file__).parents[2]
EXAMPLE = "--model multihead --embed_dim 128 --num_heads 8 --epochs 12"

LIGHT = [
    *("", "--help", "--version", "train --help", "train --model selfhead --help", "train --interactive --help"),
    *("models", "models multihead", "models --json", "tasks", "tasks --json", "docs --check"),
    *(f"{name} --help" for name in commands()),
]
MISTAKES = ["train --model multihed", "train --embed_dim 0", "train --embed_dims 3", "predict run", "trian"]
WITHOUT_TORCH = """
import runpy, sys

class Closed:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy", "sklearn", "polars", "matplotlib", "questionary"):
            raise ImportError(f"{name} takes long to import")

sys.meta_path.insert(0, Closed())
import attnlab, models
assert models.__name__ == "attnlab.models"
assert "MultiAttention" in dir(attnlab)
from attnlab.cli import main
for line in sys.argv[1:]:
    try:
        code = main(line.split())
    except SystemExit as left:
        code = left.code or 0
    print("code", code, "for", repr(line))
sys.argv = ["main.py", "--help"]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.mark.slow
def test_light_commands_do_not_import_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *LIGHT, *MISTAKES]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    codes = [line for line in out.splitlines() if line.startswith("code")]
    assert codes == [f"code {2 if line in MISTAKES else 0} for {line!r}" for line in LIGHT + MISTAKES]
    assert "usage: python main.py" in out


def test_help_shows_groups_defaults_and_an_example() -> None:
    out = output_of("train", "--help")
    assert f"\n  attnlab train {EXAMPLE}\n" in out
    for group in ("model options", "mechanism options", "data options", "training options", "output options"):
        assert group in out
    flags = (
        "model task data target embed_dim num_heads layers seq_length epochs steps batch_size learning_rate warmup "
        "weight_decay dropout grad_clip seed device precision threads compile val_fraction patience save_path run_dir "
        "resume config json quiet interactive overwrite target_type features ignore missing split_by metric "
        "class_weight evaluate_every validation_examples snapshots init_from test_length pairs vocabulary noise"
    )
    for flag in flags.split():
        assert f"--{flag}" in out, flag
    words = " ".join(out.replace("│", " ").split())
    assert f"(default: {defaults('multihead', tasks.DEFAULT).training.learning_rate})" in words
    assert "(default: float32)" in words


@pytest.mark.parametrize("name", registry.names())
def test_help_has_every_option_of_the_mechanism(name: str) -> None:
    words = " ".join(output_of("train", "--model", name, "--help").replace("│", " ").replace("|", " ").split())
    for option in mechanism_options(name):
        assert f"--{option.name}" in words
        assert " ".join(option.help.split()) in words


def test_every_command_has_a_summary() -> None:
    out = output_of()
    for name, summary in commands().items():
        assert summary.endswith(".")
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.MULTILINE)
        assert output_of(name, "--help").startswith(f"usage: attnlab {name}")


def test_models_and_tasks_are_listed() -> None:
    for command, names in (("models", registry.names()), ("tasks", tasks.names())):
        listed = output_of(command)
        assert all(name in listed for name in names)
    assert list(json.loads(output_of("models", "--json"))) == registry.names()
    assert [entry["name"] for entry in json.loads(output_of("tasks", "--json"))] == tasks.names()
    about = output_of("models", "multihead")
    assert "arXiv:1706.03762" in about
    assert "from attnlab.models.multihead import MultiAttention" in about


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *((spelled, {"embed_dim": 48}) for spelled in ("--embed_dim 48", "--embed-dim=48", "--embed_dim=48")),
        ("--no-mlp", {"mlp": False}),
        ("--model multihead --num-heads 2 --no_bias", {"num_heads": 2, "bias": False}),
        ("--model selfhead --model=multihead --num_heads 2", {"model": "multihead", "num_heads": 2}),
        ("--task multi_lookup", {"learning_rate": tasks.entry("multi_lookup").defaults["learning_rate"]}),
        ("--task fetch --lr 0.5", {"task": "multi_lookup", "learning_rate": 0.5}),
        ("--clip 2", {"grad_clip": 2.0}),
        ("--steps 7", {"steps": 7, "epochs": None}),
        ("--task text --epochs 7", {"steps": None, "epochs": 7}),
    ],
)
def test_parsed_settings(line: str, expected: dict[str, object]) -> None:
    args = parse_train_args(line.split())
    assert expected.items() <= args.settings.flat().items()
    assert args.given == given_flags(line.replace("--clip", "--grad_clip").split())


@pytest.mark.parametrize(("old", "new"), [("train --clip", "grad_clip"), ("heads x --instead", "ablation")])
def test_a_renamed_flag_is_accepted_with_a_note(old: str, new: str) -> None:
    note_renamed.cache_clear()  # once per process
    done = call(*old.split(), "wrong")
    note, error = done.err.splitlines()
    assert note == f"note: {old.split()[-1]} is now called --{new}; the old name will be removed"
    assert error.startswith(f"error: --{new} must be ")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--ignore a b", ["a", "b"]),
        ("--ignore a --seed 3 --ignore b", ["a", "b"]),
        ("--ignore=a b", ["a", "b"]),
        ("--ignore a,b", ["a,b"]),
        ("--ignore 'net income' 1 -2 None ''", ["net income", "1", "-2", "None", ""]),
        ("--ignore=--x --ignore=-y", ["--x", "-y"]),
    ],
)
def test_lists_of_columns(line: str, names: list[str]) -> None:
    settings = parse_train_args(shlex.split(line)).settings
    assert settings.data.ignore == names
    assert settings.data.features is None
    again = parse_train_args(shlex.split(" ".join(options(settings)))).settings
    assert again == settings, "the report's command asks for the same"


@pytest.mark.parametrize(
    "line",
    [
        "--target None --target_type class --missing drop --split_by lines",
        "--target=-x --features None a,b --run_dir None",
        "--metric f1 --class_weight balanced --evaluate_every 7 --validation_examples 11 --init_from './a b'",
        "--snapshots 3",
    ],
)
def test_the_printed_command_parses_to_the_same_arguments(line: str) -> None:
    asked = parse_train_args(shlex.split(line))
    again = parse_train_args(shlex.split(command_line(asked))[2:])
    assert (again.settings, again.output) == (asked.settings, asked.output)
    assert asked.settings != parse_train_args([]).settings


def test_flags_override_a_config_file() -> None:
    Path("s.toml").write_text('model = "multihead"\nembed_dim = 48\nnum_heads = 3\nsteps = 7\n', encoding="utf-8")
    settings = parse_train_args(["--config", "s.toml", "--num-heads", "6"]).settings
    assert (settings.model.embed_dim, settings.model.options["num_heads"], settings.training.steps) == (48, 6, 7)
