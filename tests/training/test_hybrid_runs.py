"""Runs of hybrid networks: their settings and files, and resuming them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import KilledError, last, lines, refused, same, stop_at, task_data

import attnlab
from attnlab.network import Network
from attnlab.training import train
from attnlab.training.experiment import Experiment, build
from attnlab.training.generate import caches_of_one_token, generate
from attnlab.training.loop import Trainer
from attnlab.training.report import options
from attnlab.training.runs import Run, make_config
from attnlab.training.settings import Settings, check, defaults, read_config, spellings
from attnlab.utils.errors import UserError

MODEL = "2*slidingwindow,linear,multihead"
SMALL = {"embed_dim": 12, "num_heads": 2, "batch_size": 8, "steps": 7, "dropout": 0.1, "evaluate_every": 1}
CHANGES: dict[str, Any] = {"window_size": 3, "model.linear.num_heads": 3, "model.multihead.bias": False}


def settings(model: str = MODEL, **changes: Any) -> Settings:
    return defaults(model, "digits").updated({**SMALL, **changes}, "the test")


def experiment(**changes: Any) -> Experiment:
    chosen, data = settings(**{**CHANGES, **changes}), task_data()
    torch.manual_seed(chosen.training.seed)
    return Experiment(chosen, data, build(chosen, data), torch.device("cpu"))


def trainer(path: Path) -> Trainer:
    ready = experiment()
    run = Run.open(path) if path.exists() else train.start(ready, path)
    made = Trainer(ready.network, ready.task_data, ready.settings, run, checkpoint_seconds=0)
    made.restore()
    return made


def test_settings_are_shared_or_of_one_mechanism() -> None:
    assert settings(**CHANGES).model.options == {
        "causal": False,
        "model.slidingwindow.num_heads": 2,
        "model.slidingwindow.window_size": 3,
        "model.slidingwindow.dilation": 1,
        "model.slidingwindow.bias": True,
        "model.slidingwindow.positions": "none",
        "model.linear.num_heads": 3,
        "model.linear.feature_map": "elu",
        "model.linear.bias": True,
        "model.multihead.num_heads": 2,
        "model.multihead.bias": False,
        "model.multihead.positions": "none",
    }
    assert [type(layer).__name__ for layer in experiment(layers=6).network.mechanisms()] == [
        *["SlidingWindowAttention"] * 2,
        "LinearAttention",
        "MultiAttention",
        *["SlidingWindowAttention"] * 2,
    ]


def test_the_default_number_of_layers_fits_the_pattern() -> None:
    assert settings("linear,multihead").model.layers == 2
    assert settings().model.layers == 4
    refused("layers (3) must be at least 4, the layers in one period of 2*slid", check, settings(layers=3))


def test_one_mechanism_may_be_written_as_a_pattern() -> None:
    one = settings("multihead", **{"model.multihead.bias": False})
    assert one.model.options == {"causal": False, "num_heads": 2, "bias": False, "positions": "none"}
    assert spellings("2*multihead,multihead") == spellings("multihead")
    network = build(settings("2*multihead"), task_data())
    assert network.to_config()["options"] == {"num_heads": 2, "bias": True, "positions": "none"}


def test_config_files_hold_tables_of_options(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text(
        f'model = "{MODEL}"\nnum-heads = 2\nwindow-size = 3\n"model.multihead.bias" = false\n[linear]\nnum-heads = 3\n'
    )
    content = {"num_heads": 2, "window_size": 3, "linear": {"num_heads": 3}, "multihead": {"bias": False}}
    as_json.write_text(json.dumps({"model": MODEL, **content}))
    for file in (toml, as_json):
        values = read_config(file)
        assert defaults(MODEL, "digits").updated(values, "it").model.options == settings(**CHANGES).model.options
    toml.write_text(f'model = "{MODEL}"\n"model.linear.bias" = false\n[linear]\nbias = true\n')
    refused("model.linear.bias is set twice", read_config, toml)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "linear,"}, "there is an empty entry in the pattern 'linear,'"),
        ({"model": "9*linear,nothing"}, "unknown model 'nothing'"),
        ({"model": "linear,multihead", "window_size": 3}, "unknown setting 'window_size'"),
        ({"model.sinks.num_heads": 2}, "unknown setting 'model.sinks.num_heads'"),
        ({"model.linear.num_heads": "two"}, "model.linear.num_heads must be a valid integer, not 'two'"),
        ({"num_heads": 2.5}, "model.slidingwindow.num_heads must be a valid integer, not 2.5"),
        ({"window": 3, "window_size": 3}, "window is the old name of window_size"),
        ({"model.linear.causal": True}, "unknown setting 'model.linear.causal'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    refused(message, settings().updated, changes, "it")


def test_wrong_networks_name_the_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("embed_dim (12) must be divisible by num_heads (5)", build, settings(num_heads=5), task_data())
    from dataclasses import replace

    from attnlab.catalog import registry

    linear = registry.load("linear")
    monkeypatch.setattr(linear, "card", replace(linear.card, supports=("causal",)))
    refused("digits needs a padding mask, which linear does not support", build, settings(), task_data())


def test_the_reproduction_command_gives_the_same_settings() -> None:
    from attnlab.cli._flags import parse_train_args

    words = options(settings(**CHANGES, precision="float64"))
    assert "'2*slidingwindow,linear,multihead'" in words
    assert {"--model.linear.num_heads", "--model.multihead.no_bias"} <= set(words)
    assert "--window_size" not in words, "only one mechanism has it"
    again = parse_train_args([word.strip("'") for word in words]).settings
    assert again.flat() == settings(**CHANGES, precision="float64").flat()
    shared = options(settings())
    assert shared[shared.index("--num_heads") + 1] == "2"


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").fit()
    for step in (2, 5):
        with pytest.raises(KilledError):
            trainer(tmp_path / "parts").fit(stop_at(step))
    trainer(tmp_path / "parts").fit()
    assert same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    loaded = attnlab.load(tmp_path / "parts")
    assert same(loaded, attnlab.load(tmp_path / "whole"))
    assert loaded.to_config()["model"] == MODEL


def test_run_folders_have_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train.start(experiment(), None)
    assert run.path == Path("runs/digits-2xslidingwindow-linear-multihead-001")
    assert Run.open(run.path).settings.flat() == settings(**CHANGES).flat()


def test_saved_networks_under_old_names_match_their_run(tmp_path: Path) -> None:
    """A run whose network was described with shared options, or before an option was renamed."""
    trained = trainer(tmp_path / "run")
    trained.fit()
    run = Run.open(tmp_path / "run")
    network = run.config["network"]
    network["options"] = {"num_heads": 2, "window": 3, "linear": {"num_heads": 3}, "multihead": {"bias": False}}
    run.replace_config({"network": network})
    assert same(Run.open(run.path).load_model(), attnlab.load(run.path / "model.safetensors"))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"model": "1000000000*linear,multihead"}, "has more than 1,000 layers"),
        ({"model": "10**9*linear"}, "has more than one *"),
        ({"model": "linear," * 10**6}, "string should have at most 1000 characters"),
        ({"model": "500*linear,500*multihead", "options": {}}, "layers (4) must be at least 1000"),
        ({"model": "500*linear,500*multihead", "layers": 1_000}, "too few for 1,000 layers"),
        ({"model": "../linear,multihead"}, "unknown model '../linear'"),
        ({"model": ["linear"]}, "input should be a valid string"),
        ({"options": {"linear": {"num_heads": 10**9}}}, "num_heads is 1000000000; the limit is 65,536"),
        ({"options": {"num_heads": 10**9}}, "num_heads is 1000000000; the limit is 65,536"),
        (
            {"options": {"num_heads": 2, "linear": {"num_heads": 5}}},
            "embed_dim (12) must be divisible by num_heads (5)",
        ),
        ({"options": {"linear": {"num_heads": 2.0}}}, "has a wrong option num_heads"),
        ({"options": {"linear": {"colour": 1}}}, "linear has no option colour"),
        ({"options": {"sinks": {"num_heads": 1}}}, "there are options for sinks"),
        ({"options": {"linear": {"linear": {}}}}, "describes no network that can be built"),
        ({"options": {"causal": True}}, "causal is one setting of all layers"),
        ({"options": {"linear": {"embed_dim": 24}}}, "embed_dim is one setting of all layers"),
        ({"layers": 10**9}, "describes no network that can be built"),
    ],
)
def test_received_patterns_are_refused_before_memory_is_allocated(described: dict[str, Any], message: str) -> None:
    from attnlab.files.tensors import Shape
    from attnlab.network.received import check_description

    network = build(settings(**CHANGES), task_data())
    shapes = {name: Shape(tensor.dtype, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    check_description(network.to_config(), shapes, Network, "it")
    refused(message, check_description, {**network.to_config(), **described}, shapes, Network, "it")


def test_shared_options_are_large_where_they_are_no_heads() -> None:
    """Only sizes of heads are limited: the name of a mechanism may contain the word."""
    network = build(settings("talkingheads,slidingwindow", window_size=70_000), task_data())
    config = make_config(settings("talkingheads,slidingwindow", window_size=70_000), network, task_data(), 1)
    from attnlab.training import records

    records.check(records.Config, config, "it")


def test_init_from_compares_patterns(tmp_path: Path) -> None:
    from attnlab.training.initial import initialize

    trainer(tmp_path / "run").fit()
    network = experiment(**{"model.slidingwindow.window_size": 5}).network
    _, notes = initialize(network, tmp_path / "run", {})
    assert notes[1:] == ["slidingwindow.window_size was 3 there and is 5 here"]
    assert same(network, attnlab.load(tmp_path / "run"))
    data = task_data()
    other = build(settings("slidingwindow,linear,2*multihead"), data)
    with pytest.raises(UserError, match=r"holds a 2\*slidingwindow,linear,multihead network, but the run trains sl"):
        initialize(other, tmp_path / "run", {})


@pytest.mark.parametrize("limited", [False, True])
def test_generation_uses_the_mixed_cache(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"length": 31, "embed_dim": 12, "layers": 4, "causal": True}
    positions = "learned" if limited else "none"
    given = {"num_heads": 2, "window_size": 3}
    network = Network(MODEL, ("tokens", 256), ("tokens", 256), options=given, position_embedding=positions, **arguments)
    cached = "".join(generate(network.double(), "The ", length=53, seed=1))
    caches = caches_of_one_token(network)
    assert caches is not None
    assert (caches.num_seen, caches.bytes_per_token) == (1, 2 * 12 * 8)
    monkeypatch.setattr(Network, "caches", lambda self: None)
    assert "".join(generate(network, "The ", length=53, seed=1)) == cached
    assert caches_of_one_token(network) is None
