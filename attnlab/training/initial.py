"""Start training from the weights of another network (``--init_from``)."""

from __future__ import annotations

from pathlib import Path

from attnlab.errors import UserError
from attnlab.network import Network
from attnlab.training.paths import shown
from attnlab.training.runs import Run, describe, file_hash, load

READOUT = "readout."


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


def initialize(network: Network, path: Path) -> tuple[str, list[str]]:
    """Copy the weights of the network at ``path``, a run or a file, into ``network``.

    All weights are copied; the readout only where both networks have the same outputs, else it keeps its new weights.

    Returns:
        The SHA-256 of the file, and what to tell the user: a line about the readout and about other options.

    Raises:
        UserError: another mechanism, or weights whose names or shapes differ.
    """
    sha256 = file_hash(str(weights_file(path)))
    assert sha256 is not None
    source = load(path)
    theirs, ours = describe(source), describe(network)
    if theirs["model"] != ours["model"]:
        raise UserError(
            f"--init_from {path} holds {theirs['model']}, and {ours['model']} is to be trained; give --model "
            f"{theirs['model']}, or the weights of a {ours['model']} network"
        )
    lines = [f"starts from the weights of {shown(path)}"]
    fresh = source.outputs != network.outputs
    if fresh:
        lines.append(f"the readout starts anew: {_outputs(source)} there, {_outputs(network)} here")
    weights = {name: w for name, w in source.state_dict().items() if not (fresh and name.startswith(READOUT))}
    own = {name: w for name, w in network.state_dict().items() if not (fresh and name.startswith(READOUT))}
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
    here, there = ours.get("options") or {}, theirs.get("options") or {}
    lines += [
        f"{name} was {there.get(name)} there and is {here.get(name)} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
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


def _outputs(network: Network) -> str:
    kind, size, slots = network.outputs
    return f"{slots} {kind}" if kind == "values" else f"{size} {'classes' if kind == 'classes' else 'kinds of tokens'}"


def _shape(weights: dict[str, object], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"  # type: ignore[attr-defined]
