"""Settings: ranges, names, types and files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import refused

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED, Option
from attnlab.training.settings import (
    RANGES,
    Choices,
    Settings,
    check,
    choices_of,
    defaults,
    mechanism_options,
    option_type,
    read_config,
)
from attnlab.utils.errors import UserError

WHOLE = {"embed_dim", "layers", "epochs", "steps", "batch_size", "patience", "seed", "threads"}
WHOLE |= {"seq_length", "test_length", "pairs", "vocabulary"}


def changed(name: str, value: Any) -> Settings:
    """The default settings with one value set without validation, as the command line does."""
    settings = Settings()
    (group,) = [g for g in (settings.model, settings.data, settings.training, settings.hardware) if hasattr(g, name)]
    setattr(group, name, value)
    if name == "steps":
        settings.training.epochs = None
    return settings


@pytest.mark.parametrize("name", RANGES)
def test_range_limits(name: str) -> None:
    low, high = RANGES[name]
    check(changed(name, low))
    check(changed(name, high))
    whole = name in WHOLE
    tiny = 1 if whole else 1e-9 * max(1.0, high)
    beyond = [-1, 10**30, -(10**400), 10**400] if whole else [math.nan, math.inf, -math.inf, 1e300]
    for value in (low - tiny, high + tiny, *beyond):
        with pytest.raises(UserError, match=f"^{name} must be from .{{,100}}$"):
            check(changed(name, value))


def test_every_number_has_a_range() -> None:
    numbers = {k for k, v in Settings().flat().items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert numbers <= set(RANGES)


def test_epochs_or_steps() -> None:
    both, neither = Settings(), Settings()
    both.training.steps = 5
    neither.training.epochs = None
    for settings in (both, neither):
        refused("the training length is set by epochs or by steps; give one of them", check, settings)
    updated = Settings().updated({"steps": 5}, "a file")
    assert (updated.training.steps, updated.training.epochs) == (5, None)
    again = updated.updated({"epochs": 3}, "a file")
    assert (again.training.steps, again.training.epochs) == (None, 3)
    assert Settings().updated({"steps": 5, "epochs": None}, "a file").training.steps == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embed_dim": "64"}, "embed_dim must be a valid integer, not '64' (in a file)"),
        ({"embed_dim": 64.0}, "embed_dim must be a valid integer, not 64.0 (in a file)"),
        ({"embed_dim": True}, "embed_dim must be a valid integer, not True (in a file)"),
        ({"embed_dim": None}, "embed_dim must be a valid integer, not None (in a file)"),
        ({"dropout": "a lot"}, "dropout must be a valid number, not 'a lot' (in a file)"),
        ({"dropout": False}, "dropout must be a valid number, not False (in a file)"),
        ({"mlp": 1}, "mlp must be a valid boolean, not 1 (in a file)"),
        ({"seq_length": 1.5}, "seq_length must be a valid integer, not 1.5 (in a file)"),
        ({"data": 3}, "data must be a valid string, not 3 (in a file)"),
        ({"data": "a\0b"}, "data must be a valid string, not 'a\\x00b' (in a file)"),
        ({"precision": "float8"}, "precision must be 'float32', 'bfloat16', 'float16' or 'float64', not 'float8'"),
        ({"num_heads": [2]}, "num_heads must be a valid integer, not [2] (in a file)"),
        ({"learning_rates": 0.1}, "unknown setting 'learning_rates'; did you mean learning_rate? (in a file)"),
        ({"heads": 4}, "unknown setting 'heads'; "),
        ({"quiet": True}, "unknown setting 'quiet'; "),
        ({"positions": 3}, "positions must be 'none', 'rotary', 'alibi' or 't5' or a valid string, not 3"),
        ({"position_embedding": "waves"}, "must be 'learned', 'sinusoidal' or 'none', not 'waves'"),
        ({"steps": 5, "epochs": 3}, "epochs and steps both set the training length; give one of them (in a file)"),
        ({"clip": 0.5, "grad_clip": 0.5}, "clip and grad_clip are the same setting; give one of them (in a file)"),
    ],
)
def test_wrong_types_and_unknown_names_are_refused(values: dict[str, Any], message: str) -> None:
    refused(message, Settings().updated, values, "a file")


def test_integer_is_accepted_for_float() -> None:
    rate = Settings().updated({"learning_rate": 1}, "a file").training.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_unknown_names_suggest_the_nearest() -> None:
    refused("unknown model 'multihed'; did you mean multihead", defaults, "multihed", "digits")
    refused("unknown task 'digit'; did you mean digits", defaults, "multihead", "digit")


@pytest.mark.parametrize("model", registry.names())
@pytest.mark.parametrize("task", tasks.names())
def test_settings_round_trip(model: str, task: str) -> None:
    settings = defaults(model, task)
    check(settings)
    flat = settings.flat()
    assert set(settings.model.options) == {option.name for option in mechanism_options(model)}
    assert set(settings.model.options) <= set(flat), "an option of the mechanism is a setting like any other"
    assert "options" not in flat
    through_a_file = json.loads(json.dumps(flat))
    assert defaults(model, task).updated(through_a_file, "a file") == settings


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "embed_dim": st.integers(1, 65_536),
            "num_heads": st.integers(1, 64),
            "dropout": st.floats(0, 0.99),
            "mlp": st.booleans(),
            "steps": st.integers(1, 10**8),
            "data": st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            "precision": st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
            "threads": st.none() | st.integers(1, 4096),
        },
    )
)
def test_valid_settings_survive_a_file(values: dict[str, Any]) -> None:
    settings = Settings().updated(values, "the test")
    check(settings)
    again = Settings().updated(json.loads(json.dumps(settings.flat())), "a file")
    assert again.flat() == settings.flat()


def test_updated_does_not_change_the_original() -> None:
    first = defaults("multihead", "digits")
    before = first.flat()
    first.updated({"num_heads": 2, "embed_dim": 8, "steps": 3}, "the test")
    assert first.flat() == before


def test_config_formats(tmp_path: Path) -> None:
    values = {"embed_dim": 32, "num_heads": 4, "learning_rate": 0.01, "mlp": False}
    toml, plain, run = tmp_path / "a.toml", tmp_path / "a.json", tmp_path / "config.json"
    toml.write_text("# mine\nembed-dim = 32\nnum_heads = 4\nlearning_rate = 1e-2\nmlp = false\n", encoding="utf-8")
    plain.write_text("\ufeff" + json.dumps(values), encoding="utf-8")
    run.write_text(json.dumps({"format": 1, "settings": values}), encoding="utf-8")
    assert read_config(toml) == read_config(plain) == read_config(run) == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "embed_dim = ", "is malformed: "),
        ("a.toml", "embed_dim = 1\nembed_dim = 2", "is malformed: "),
        ("a.toml", "embed_dim = 1\nembed-dim = 2", "is malformed: embed_dim is set twice"),
        ("a.json", '{"embed_dim": 1, "embed_dim": 2}', "is malformed: embed_dim is set twice"),
        ("a.json", "", "is malformed: "),
        ("a.json", "[1, 2]", "holds [1, 2]; expected settings by name"),
        ("a.json", '{"settings": 3}', "holds 3; expected settings by name"),
        ("a.json", "[" * 100_000, "is malformed: it is nested too deeply"),
        ("a.json", '{"embed_dim": ' + "9" * 5000 + "}", "is malformed: "),
        ("a.json", b"\xff\xfe\x00{", "is malformed: "),
    ],
)
def test_malformed_config_is_refused_in_one_line(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(f"--config {path} {message}", read_config, path)


# The types of a mechanism's own options


def option(annotation: str) -> Option:
    return Option("kind", annotation, REQUIRED, "")


@pytest.mark.parametrize(
    ("annotation", "kind", "choices"),
    [
        ("int", int, Choices()),
        ("bool", bool, Choices(("yes", "no"))),
        ("int | None", int | None, Choices()),
        ("None | float", None | float, Choices()),
        ("Literal['a', 'b']", Literal["a", "b"], Choices(("a", "b"))),
        ("Literal['a', 'b'] | None", Literal["a", "b"] | None, Choices()),
        ("Literal['a', 'b'] | str", Literal["a", "b"] | str, Choices(("a", "b"), open=True)),
        ("Literal['a', 'b'] | str | Positions", Literal["a", "b"] | str, Choices(("a", "b"), open=True)),
        ("Positions | Literal['a', 'b']", Literal["a", "b"], Choices(("a", "b"))),
        ("attnlab.Positions | str", str, Choices()),
    ],
)
def test_option_types_and_choices(annotation: str, kind: Any, choices: Choices) -> None:
    assert option_type(option(annotation), "mine") == kind
    assert choices_of(option(annotation), "mine") == choices


@pytest.mark.parametrize(
    "annotation", ["Tensor", "Tensor | None", "Tensor | Mask", "__import__('os')", "dict[str, int]"]
)
def test_unsupported_option_types(annotation: str) -> None:
    message = f"models/mine has an option of type {annotation}, which cannot be a flag; use int"
    refused(message, option_type, option(annotation), "mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_only_small_regular_files_are_configs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.toml").symlink_to("/dev/zero")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**34)  # a hole: no byte of it is on the disk
    for name, message in {
        "a.json": "a.json is a pipe; write its content to a file first",
        "b.toml": "b.toml is a device",
        "huge.json": "huge.json has 17,179,869,184 bytes; settings are far smaller",
        "missing.toml": "missing.toml: No such file",
    }.items():
        refused(message, read_config, tmp_path / name)


def test_earlier_names_of_settings_and_tasks() -> None:
    updated = Settings().updated({"clip": 0.5, "lr": 0.25, "task": "fetch"}, "a file")
    assert (updated.training.grad_clip, updated.training.learning_rate) == (0.5, 0.25)
    assert updated.data.task == tasks.entry("fetch").name == "multi_lookup"
