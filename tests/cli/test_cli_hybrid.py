"""Patterns of mechanisms on the command line, from training to generation."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from calls import call, error_of, output_of, trained, write_files

import attnlab
from attnlab.catalog import registry
from attnlab.training.runs import Run

MODEL = "slidingwindow,linear,multihead"
TEXT = "".join(f"the {i} quick brown foxes jump over {i} dogs\n\n" for i in range(97))
SMALL = ("train", "--embed_dim", "8", "--steps", "3", "--seq_length", "13", "--data", "mine.txt")


@pytest.fixture(autouse=True)
def text() -> None:
    write_files(Path(), {"mine.txt": TEXT})


@pytest.mark.slow
def test_train_resume_evaluate_generate_list_and_study() -> None:
    words = ("--num_heads", "2", "--window_size", "3", "--model.linear.num_heads=4", "--model.linear.no_bias")
    out = output_of(*SMALL, "--model", MODEL, *words, "--position_embedding", "none")
    for line in (
        "network   slidingwindow,linear,multihead: 3 layers, embed_dim 8, causal True",
        "slidingwindow: num_heads 2, window_size 3, dilation 1, bias True, positions none",
        "linear: num_heads 4, feature_map elu\n",
        "multihead: num_heads 2, bias True, positions none",
        "288 in each slidingwindow layer, 256 in each linear layer, 288 in each multihead layer",
        f"decoding with a cache of {2 * 8 * 4} bytes per token and {3 * 2 * 8 * 4 + 4 * 2 * 3 * 4} bytes per sequence",
    ):
        assert line in out, line
    path = Path("runs/text-slidingwindow-linear-multihead-001")
    settings = Run.open(path).settings
    assert settings.model.options["model.linear.num_heads"] == 4
    assert settings.model.options["model.multihead.num_heads"] == 2

    report = (path / "report.md").read_text("utf-8")
    assert report.startswith("# slidingwindow,linear,multihead on text\n")
    command = shlex.split(report.split("```sh\n")[1].split("\n")[0])
    assert "--model.linear.no_bias" in command
    output_of(*command[1:], "--run_dir", "again")
    assert Path("again/model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()

    output_of("train", "--resume", str(path), "--steps", "5", "--quiet", "--model.linear.num_heads", "4")
    assert "slidingwindow,linear,multihead" in output_of("evaluate", str(path))
    assert len(output_of("generate", str(path), "--length", "50", "--prompt", "The")) >= 4
    row = json.loads(output_of("runs", "--json"))[0]
    assert (row["model"], row["status"]) == (MODEL, "finished")
    assert "model.linear.num_heads" not in output_of("runs", "diff", str(path), "again")

    heads = json.loads(output_of("heads", str(path), "--examples", "7", "--json"))
    assert [head["layer"] for head in heads["heads"]] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert heads["note"] == ""


@pytest.mark.slow
def test_layers_without_heads_are_named_and_stay_whole() -> None:
    trained("--model", "2*selfhead,multihead,latent", "--num_heads", "2", "--steps", "2", "--layers", "4", run="run")
    done = call("heads", "run", "--examples", "7")
    assert done.code == 0, done
    note = "no separate heads, so these layers stay whole: layers 0, 1 (SelfAttention), layer 3 (LatentAttention)"
    assert note in " ".join(done.out.split())
    output_of("heads", "run", "--examples", "7", "--prune", "0.5", "--save_path", "small.safetensors")
    sizes = [layer.num_heads for layer in attnlab.load("small.safetensors").mechanisms()]
    assert sizes == [1, 1, 1, 2]
    trained("--model", "selfhead,latent", "--num_heads", "2", "--steps", "2", "--layers", "2", run="none")
    assert error_of("heads", "none") == (
        "none: SelfAttention has no separate heads; it must be an attnlab.nn.multihead.MultiHeadBase"
    )


def test_flags_override_a_config_file() -> None:
    Path("a.toml").write_text(f'model = "{MODEL}"\nnum_heads = 4\n[linear]\nnum_heads = 2\nfeature_map = "relu"\n')
    output_of(*SMALL, "--config", "a.toml", "--run_dir", "one")
    options = Run.open(Path("one")).settings.model.options
    heads = {flag: value for flag, value in options.items() if "num_heads" in flag}
    assert heads == {"model.slidingwindow.num_heads": 4, "model.linear.num_heads": 2, "model.multihead.num_heads": 4}
    assert options["model.linear.feature_map"] == "relu"
    output_of(*SMALL, "--config", "a.toml", "--num_heads", "1", "--run_dir", "two")
    options = Run.open(Path("two")).settings.model.options
    assert [options[flag] for flag in heads] == [1, 1, 1]
    assert options["model.linear.feature_map"] == "relu"


def test_help_lists_the_options_of_each_mechanism() -> None:
    out = " ".join(output_of("train", "--model", "3*linear,multihead", "--help").split())
    for words in ("Options for linear.", "--model.linear.feature_map", "Options for multihead.", "(default: 4)"):
        assert words in out
    assert "A plain flag, such as --num_heads, sets an option of every mechanism" in out.replace("│ │ ", "")


def test_interactive_takes_a_pattern() -> None:
    answers = ["linear,,sinks", "linear,multihead", "digits", "12", "5", "3", *[""] * 4, "no"]
    defaults = ("--layers=2", "--epochs=60", "--batch_size=32", "--learning_rate=0.001", "--position_embedding=learned")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO("\n".join(answers) + "\n"))
        done = call("train", "--interactive", "--bias", *defaults)
    assert done.code == 0, done
    out = " ".join(done.out.split())
    assert "there is an empty entry in the pattern 'linear,,sinks'" in out
    assert "embed_dim (12) must be divisible by num_heads (5)" in out
    assert "(model.multihead.positions)" in out
    assert "(model.linear.bias)" not in out, "--bias answers it"
    shown = shlex.split(done.out.split("equivalent command:\n  ")[1].split("\n")[0])
    assert shown == [
        *("attnlab", "train", "--model", "linear,multihead", "--task", "digits", "--embed_dim", "12"),
        *("--model.linear.num_heads", "3", "--model.multihead.num_heads", "6"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "linear,"), "there is an empty entry in the pattern 'linear,'; write NAME or COUNT*NAME"),
        (("--model", "linear*3"), "did you mean 3*linear?"),
        (("--model", "3*linaer"), "unknown model 'linaer'; did you mean linear?"),
        (("--model", "3*linear,multihead", "--layers", "3"), "layers (3) must be at least 4"),
        (("--window_size", "3"), "no mechanism of linear,multihead has an option window_size; models that have it: "),
        (("--num_headz", "3"), "unknown option --num_headz; did you mean --num_heads?"),
        (("--model.linear.num_head", "3"), "unknown option of linear 'num_head'; did you mean num_heads?"),
        (("--model.linear.window_size", "3"), "unknown option of linear 'window_size'; there are: num_heads"),
        (("--model.sinks.num_heads", "3"), "--model.sinks.num_heads is an option of sinks, but the model is linear,"),
        (("--model.sink.num_heads", "3"), "unknown model 'sink'; did you mean sinks?"),
        (("--model.linear.causal",), "causal is one setting of all layers; give --causal in place of --model.linear."),
        (("--model.linear.num_heads", "x"), "--model.linear.num_heads must be an integer, not 'x'"),
        (("--num_heads", "3"), "linear,multihead: embed_dim (64) must be divisible by num_heads (3)"),
        (("--task", "recall", "--no_causal"), "recall predicts the next token, so the network must be causal"),
    ],
)
def test_errors(words: tuple[str, ...], message: str) -> None:
    assert message in error_of("train", "--model", "linear,multihead", *words)


def test_networks_of_always_causal_mechanisms_cannot_be_made_bidirectional() -> None:
    model = next(name for name in registry.names() if registry.entry(name).card.always_causal)
    words = ("train", "--model", model, "--task", "digits", "--no_causal")
    assert error_of(*words) == f"{model} is always causal; leave out --no_causal"


def test_generated_text_is_that_of_the_full_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    output_of(
        *SMALL, "--model", MODEL, "--num_heads", "2", "--position_embedding", "none", "--run_dir", "run", "--quiet"
    )
    words = ("generate", "run", "--length", "61", "--temperature", "0")
    cached = output_of(*words)
    calls: list[int] = []
    forward = attnlab.Network.forward

    def count(self: attnlab.Network, x: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        calls.append(x.shape[1])
        return forward(self, x, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(attnlab.Network, "forward", count)
    assert output_of(*words) == cached
    assert calls == [4] + [1] * 60
    monkeypatch.setattr(attnlab.Network, "caches", lambda self: None)
    assert output_of(*words) == cached
