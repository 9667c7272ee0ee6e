"""Initialization with the parameters of another network (``--init_from``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnlab.catalog import pattern
from attnlab.network import Network
from attnlab.tasks._split import listed
from attnlab.training.network_file import load_network
from attnlab.training.paths import file_hash, shown
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError

OUTPUT_LAYER, EMBEDDING = "readout.", "embed."
"""Prefixes of parameter names; the output layer keeps its first name, so that older checkpoints load."""
STATISTICS = {"means", "spreads"}
"""Entries that may differ between two tables with the same columns."""


@torch.no_grad()
def draw_weights(network: nn.Module, std: float) -> None:
    """Draw the weights of all linear layers from a normal distribution with mean 0, and set their biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def weights_file(path: Path) -> Path:
    """The file with the parameters; for a run's folder, its best network."""
    file = Run.open(path).path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = f"the run {path} has no network yet" if path.is_dir() else f"{path} is not there"
        raise UserError(f"--init_from: {what}; give a run, or a file written by --save_path")
    return file


def initialize(network: Network, path: Path, encoding: dict[str, Any]) -> tuple[str, list[str]]:
    """Copy the parameters of the network at ``path``, a run or a file, into ``network``.

    The output layer keeps its new parameters if the outputs or classes differ, and the embedding if the columns of the
    tables differ from ``encoding``. Parameters with other names or shapes are refused.

    Returns:
        The SHA-256 of the file, and lines for the user: which layers are not copied, and which options differ.
    """
    sha256 = file_hash(str(weights_file(path)))
    assert sha256 is not None
    if path.is_dir():
        Run.open(path).load_model()  # refuses files put together from two runs
    source, about = load_network(weights_file(path))
    old, new = source.to_config(), network.to_config()
    if pattern.period(old["model"]) != pattern.period(new["model"]):
        raise UserError(
            f"--init_from {path} holds a {old['model']} network, but the run trains {new['model']}; give --model "
            f"{old['model']}, or the parameters of a {new['model']} network"
        )
    lines = [f"starts from the parameters of {shown(path)}"]
    learned = about.get("encoding", {})
    fresh: tuple[str, ...] = ()
    if source.outputs != network.outputs:
        fresh += (OUTPUT_LAYER,)
        lines.append(f"the output layer is new: {_outputs(source)} there, {_outputs(network)} here")
    elif learned.get("labels") != encoding.get("labels"):
        fresh += (OUTPUT_LAYER,)
        there, here = (listed(each.get("labels") or ["numbers"]) for each in (learned, encoding))
        lines.append(f"the output layer is new: the classes are {there} there, {here} here")
    if _columns(learned) != _columns(encoding):
        fresh += (EMBEDDING,)
        lines.append("the embedding is new: the columns of the tables, or their categories, differ")
    weights = {name: w for name, w in source.state_dict().items() if not name.startswith(fresh)}
    target = {name: w for name, w in network.state_dict().items() if not name.startswith(fresh)}
    differing = [
        f"{name} is {_shape(weights, name)} there and {_shape(target, name)} here"
        for name in dict.fromkeys([*target, *weights])
        if name not in target or name not in weights or target[name].shape != weights[name].shape
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"--init_from {path} does not match this network: {'; '.join(differing[:3])}{more}; use the "
            "embed_dim, layers and options that it was trained with"
        )
    network.load_state_dict(weights, strict=not fresh)
    options, old_options = _options(new), _options(old)
    lines += [
        f"{name} was {old_options.get(name)} there and is {options.get(name)} here"
        for name in sorted(options.keys() | old_options.keys())
        if options.get(name) != old_options.get(name)
    ]
    return sha256, lines


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a network, for a pattern as ``linear.num_heads``."""
    options = pattern.options_by_mechanism(config["model"], config.get("options") or {})
    several = len(options) > 1
    return {
        f"{model}.{name}" if several else name: v for model, values in options.items() for name, v in values.items()
    }


def check_weights(run: Run) -> None:
    """Refuse to start a run from other parameters than those in its config."""
    path = run.config["settings"].get("init_from")
    if path is not None and file_hash(str(weights_file(Path(path)))) != run.config["init_sha256"]:
        raise UserError(
            f"the parameters in {shown(path)} were altered since {run.path} was created to start from them; "
            "restore the old file, or start a new run"
        )


def _columns(encoding: Any) -> Any:
    """The encoded columns of a table without the statistics of their values."""

    def meaning(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: meaning(each) for name, each in value.items() if name not in STATISTICS}
        return [meaning(each) for each in value] if isinstance(value, list) else value

    return meaning(json.loads(json.dumps(encoding.get("columns"))))


def _outputs(network: Network) -> str:
    kind, size, slots = network.outputs
    return f"{slots} {kind}" if kind == "values" else f"{size} {'classes' if kind == 'classes' else 'kinds of tokens'}"


def _shape(weights: dict[str, object], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"  # type: ignore[attr-defined]
