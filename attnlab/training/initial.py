"""Start training from the weights of another network (``--init_from``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnlab.network import Network
from attnlab.tasks._split import listed
from attnlab.training.paths import shown
from attnlab.training.runs import Run, file_hash, load_network
from attnlab.utils.errors import UserError

READOUT, EMBEDDING = "readout.", "embed."
STATISTICS = {"means", "spreads"}
"""What differs between two tables of the same columns."""


def weights_file(path: Path) -> Path:
    """The file that holds the weights: of a run's folder its best network.

    Raises:
        UserError: when there is none.
    """
    file = Run.open(path).path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = f"the run {path} has no network yet" if path.is_dir() else f"{path} is not there"
        raise UserError(f"--init_from: {what}; give a run, or a file written by --save_path")
    return file


def initialize(network: Network, path: Path, encoding: dict[str, Any]) -> tuple[str, list[str]]:
    """Copy the weights of the network at ``path``, a run or a file, into ``network``.

    All weights are copied, but the readout where both networks have other outputs or classes, and the embedding where
    the columns of their tables differ: these keep their new weights.

    Args:
        network: is changed.
        path: a run's folder or a file.
        encoding: that of the problem that the network is to learn.

    Returns:
        The SHA-256 of the file, and what to tell the user, a line each: about what starts anew and about other options.

    Raises:
        UserError: another mechanism, or weights whose names or shapes differ.
    """
    sha256 = file_hash(str(weights_file(path)))
    assert sha256 is not None
    if path.is_dir():
        Run.open(path).load_model()  # refuses files put together from two runs
    source, about = load_network(weights_file(path))
    theirs, ours = source.to_config(), network.to_config()
    if theirs["model"] != ours["model"]:
        raise UserError(
            f"--init_from {path} holds {theirs['model']}, and {ours['model']} is to be trained; give --model "
            f"{theirs['model']}, or the weights of a {ours['model']} network"
        )
    lines = [f"starts from the weights of {shown(path)}"]
    learned = about.get("encoding", {})
    fresh: tuple[str, ...] = ()
    if source.outputs != network.outputs:
        fresh += (READOUT,)
        lines.append(f"the readout starts anew: {_outputs(source)} there, {_outputs(network)} here")
    elif learned.get("labels") != encoding.get("labels"):
        fresh += (READOUT,)
        there, here = (listed(each.get("labels") or ["numbers"]) for each in (learned, encoding))
        lines.append(f"the readout starts anew: the classes are {there} there, {here} here")
    if _columns(learned) != _columns(encoding):
        fresh += (EMBEDDING,)
        lines.append("the embedding starts anew: the columns of the tables, or their categories, differ")
    weights = {name: w for name, w in source.state_dict().items() if not name.startswith(fresh)}
    own = {name: w for name, w in network.state_dict().items() if not name.startswith(fresh)}
    differing = [
        f"{name} is {_shape(weights, name)} there and {_shape(own, name)} here"
        for name in dict.fromkeys([*own, *weights])
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"--init_from {path} does not fit this network: {'; '.join(differing[:3])}{more}; give the width, "
            "the layers and the options that it was trained with"
        )
    network.load_state_dict(weights, strict=not fresh)
    options, others = ours.get("options") or {}, theirs.get("options") or {}
    lines += [
        f"{name} was {others.get(name)} there and is {options.get(name)} here"
        for name in sorted(options.keys() | others.keys())
        if options.get(name) != others.get(name)
    ]
    return sha256, lines


def check_weights(run: Run) -> None:
    """Refuse to start a run from other weights than those that it was made for.

    Raises:
        UserError: when their file is gone or altered.
    """
    path = run.config["settings"].get("init_from")
    if path is not None and file_hash(str(weights_file(Path(path)))) != run.config["init_sha256"]:
        raise UserError(
            f"the weights in {shown(path)} were altered since {run.path} was made, which is to start from them; "
            "put the old ones back, or start a new run"
        )


def _columns(encoding: Any) -> Any:
    """What the codes of a table's cells mean: its encoded columns without the statistics of their values."""

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
