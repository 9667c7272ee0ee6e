"""The folder of a run: its settings, checkpoints, metrics and result.

config.json        the settings, the network's shape, the encoding of the data
metrics.jsonl      one line per evaluation
model.safetensors  the best network on the validation data
state.safetensors  the state of training, to resume it
snapshots/         the networks at some steps of training, if any were asked for
result.json        the test result with its baselines, once training has ended
report.md, curve.png
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import attnlab
from attnlab.catalog import pattern, registry
from attnlab.catalog.source import REQUIRED
from attnlab.files.atomic import UNFINISHED, append_line, write_text
from attnlab.files.tensors import Shape, check_finite
from attnlab.network import Network
from attnlab.tasks.base import TaskData
from attnlab.training import folder, records
from attnlab.training.checkpoint import load_tensors, save_tensors
from attnlab.training.folder import RUNS, SNAPSHOTS, snapshot_name
from attnlab.training.locks import LockedFolder
from attnlab.training.network_file import load_network, save_network
from attnlab.training.paths import absolute, file_hash, shown
from attnlab.training.settings import Settings, defaults
from attnlab.training.settings import check as check_settings
from attnlab.training.state import check_state
from attnlab.utils.errors import UserError

FORMAT = 2


@dataclass
class Run:
    """The folder of one run; ``path`` changes if the folder is removed during training (see `alone`)."""

    path: Path
    config: dict[str, Any]
    _locked: LockedFolder | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def create(path: Path | None, config: dict[str, Any], *, overwrite: bool = False) -> Run:
        """A new folder with ``config``, created atomically; by default the next free ``runs/TASK-MODEL-NNN``."""
        target = RUNS if path is None else Path(os.path.realpath(path))
        parent = target if path is None else target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.sweep(parent)
            new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        except OSError as error:
            raise UserError(f"cannot make a run folder in {parent}: {error.strerror}") from None
        try:
            new.chmod(0o755)
            write_text(new / "config.json", records.write(records.Config, config))
            if path is None:
                path = folder.take_number(
                    new, f"{config['settings']['task']}-{pattern.file_name(config['settings']['model'])}"
                )
            else:
                folder.check_run_dir(path, overwrite=overwrite)
                folder.replace(new, target)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError):
                raise UserError(f"cannot make the run folder {path or parent}: {error.strerror}") from None
            raise
        return Run(path, config)

    @staticmethod
    def open(path: Path) -> Run:
        """The run in a folder; one that is missing, holds no run, or was altered is refused."""
        folder.restore_replaced(path)
        file = path / "config.json"
        if not os.path.lexists(file):
            raise UserError(f"{path} is no run folder (it has no config.json); attnlab runs lists those there are")
        try:
            config = records.read(file)
            version, fingerprint = config["format"], config["sha256"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} was not written by attnlab, or altered; restore it, or train again") from None
        if version != FORMAT:
            raise UserError(f"{path} has format {version!a:.20}; this attnlab reads format {FORMAT}")
        if fingerprint != _fingerprint(config):
            raise UserError(f"{file} was altered: its checksum does not match; restore it, or train again")
        records.check(records.Config, config, file)
        return Run(path, config)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder inside the context; the lock ends with the process.

        If the folder is removed, moved or replaced meanwhile, further files go to a new folder ``NAME-recovered``,
        which becomes this run's `path`.
        """
        self._locked = LockedFolder(self.path)
        try:
            folder.remove_unfinished(self.path)  # files of a process that was killed while writing
            yield
        finally:
            self._locked.close()
            self._locked = None

    def place(self, name: str) -> Path:
        """The path to write a file of this run to; see `alone` for a folder that was removed."""
        if self._locked is not None and self._locked.was_removed():
            self.path = self._locked.recover(records.write(records.Config, self.config))
        return self.path / name

    def replace_config(self, changes: dict[str, Any]) -> Run:
        """Change config.json; with the same ``id``, checkpoints still belong to the run, but its result does not."""
        config = json.loads(json.dumps({**self.config, **changes}))
        config["sha256"] = _fingerprint(config)
        write_text(self.place("config.json"), records.write(records.Config, config))
        self.config = config
        return self

    @property
    def settings(self) -> Settings:
        """The settings that the run was started with or extended to."""
        recorded = self.config["settings"]
        settings = defaults(recorded["model"], recorded["task"]).updated(recorded, str(self.path / "config.json"))
        check_settings(settings)
        return settings

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinity become null."""
        line = {name: None if value != value or abs(value) == float("inf") else value for name, value in line.items()}
        records.MetricsLine.model_validate(line)
        file = self.place("metrics.jsonl")
        append_line(file, json.dumps(line))
        self._keep(file)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without an incomplete last line."""
        file = self.path / "metrics.jsonl"
        return records.read_metrics(file, self.config["metric"]) if os.path.lexists(file) else []

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl and the snapshots after ``step``, from which training resumes."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.place("metrics.jsonl"), "".join(kept))
        for taken, file in folder.snapshots(self.path).items():
            if taken > step:
                file.unlink(missing_ok=True)
            else:
                self._keep(file, f"{SNAPSHOTS}/{file.name}")

    def save_model(self, network: Network, about: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
        """Save the best network so far; ``weights`` are its parameters if it is sharded."""
        file = self.place("model.safetensors")
        save_network(file, network, {**self._description(), **about}, weights=weights)
        self._keep(file)

    def load_model(self) -> Network:
        """The best network so far, in eval mode."""
        file = self.place("model.safetensors")
        network, about = load_network(file, trained=True, follow=False)
        self._check_id("model.safetensors", about)
        self._check_description(file, about)
        return network

    def snapshot_file(self, step: int) -> Path:
        """The file of the snapshot at a step."""
        return self.path / SNAPSHOTS / snapshot_name(step)

    def snapshots(self) -> list[int]:
        """The steps of the snapshots in the folder, in order."""
        return sorted(folder.snapshots(self.path))

    def save_snapshot(self, step: int, network: Network, weights: dict[str, Tensor] | None = None) -> None:
        """Save the network as it is at a step; ``weights`` are its parameters if it is sharded."""
        parent = self.place(SNAPSHOTS)
        folder.make_snapshots(parent)
        file = parent / snapshot_name(step)
        save_network(file, network, {**self._description(), "step": step}, weights=weights)
        self._keep(file, f"{SNAPSHOTS}/{file.name}")

    def load_snapshot(self, step: int) -> Network:
        """The network as it was at a step, in eval mode; UserError if there is no snapshot of it."""
        steps = self.snapshots()
        if step not in steps:
            known = ", ".join(f"{each:,}" for each in steps)
            has = f"there are those of {known}" if steps else "it has none; train with --snapshots"
            raise UserError(f"{self.path} has no snapshot of step {step:,}; {has}")
        file = self.snapshot_file(step)
        network, about = load_network(file, follow=False)
        self._check_id(f"{SNAPSHOTS}/{file.name}", about)
        if about.get("step") != step:
            raise UserError(f"{file} is the snapshot of another step; restore it, or train again")
        self._check_description(file, about)
        return network

    def save_state(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Save the state of training."""
        about = {"run": self.config["id"], **about}
        records.StateRecord.model_validate(about)
        save_tensors(self.place("state.safetensors"), tensors, about)

    def load_state(self, network: Network, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the description of the state of training of ``network``, which is not changed."""
        file = self.path / "state.safetensors"

        def check(about: dict[str, Any], shapes: dict[str, Shape]) -> None:
            self._check_id("state.safetensors", about)
            if "random.cpu" not in shapes:
                raise UserError(f"{file} holds only a network; restore it, or train again")
            records.check(records.StateRecord, about, file)
            check_state(shapes, network, optimizer, file)

        tensors, about = load_tensors(file, check)
        check_finite(tensors, str(file))
        return tensors, about

    @property
    def began(self) -> bool:
        """Whether there is a checkpoint to resume from; a run that lacks only this one is refused."""
        if os.path.lexists(self.path / "state.safetensors"):
            return True
        if os.path.lexists(self.path / "model.safetensors") or self.metrics():
            raise UserError(f"{self.path} lacks its state.safetensors; restore it, or train again")
        return False

    def result(self) -> dict[str, Any] | None:
        """The test result; None before training has ended, also if the run was extended after an earlier end."""
        file = self.path / "result.json"
        if not os.path.lexists(file):
            return None
        advice = f"remove it, and --resume {self.path} makes it again"
        try:
            result: dict[str, Any] = records.read(file)
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}; {advice}") from None
        records.check(records.Result, result, file, advice)
        return result if result["config"] == self.config["sha256"] else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the end of the run."""
        write_text(self.place("result.json"), records.write(records.Result, result))

    def export(self, path: Path) -> None:
        """Copy the best network to a .safetensors, .pth or .pt file."""
        self.load_model()
        try:
            Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; the network is in {self.path}") from None
        save_tensors(path, *load_tensors(self.path / "model.safetensors"), follow=True)

    def _keep(self, file: Path, name: str | None = None) -> None:
        if self._locked is not None:
            self._locked.keep(file, name)

    def _description(self) -> dict[str, Any]:
        """What the files of networks say about the run and its data."""
        about = {key: self.config[key] for key in ("attnlab", "encoding", "metric", "unit")}
        return about | {"task": self.config["settings"]["task"], "run": self.config["id"]}

    def _check_description(self, file: Path, about: dict[str, Any]) -> None:
        """Refuse the description of a network that differs from config.json."""
        expected = {**self.config, "task": self.config["settings"]["task"]}
        saved, expected = ({**each, "network": _with_all_options(each["network"])} for each in (about, expected))
        for name in ("network", "encoding", "metric", "unit", "task"):
            if saved.get(name) != expected[name]:
                raise UserError(f"{file} has another {name} than the config.json beside it; restore it, or train again")

    def _check_id(self, name: str, about: dict[str, Any]) -> None:
        if about.get("run") != self.config["id"]:
            raise UserError(
                f"{self.path / name} belongs to another run than the config.json beside it; restore it, or train again"
            )


def _with_all_options(network: dict[str, Any]) -> dict[str, Any]:
    """The description of a network with the current names of its options, and defaults for options added since."""
    options = pattern.options_by_mechanism(network["model"], network.get("options") or {})
    for name, given in options.items():
        initial = {o.name: o.default for o in registry.entry(name).options if o.default is not REQUIRED}
        options[name] = initial | given
    return {**network, "options": options}


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Network:
    """The trained network of a run folder, or of a file written by ``--save_path``.

    Args:
        path: a run folder, or a .safetensors, .pth or .pt file.
        device: of the network.

    Returns:
        The network, in eval mode; ``network.mechanisms()[0].attention_weights(...)`` gives its attention weights.

    Raises:
        UserError: for a network that is missing or damaged.
    """
    path = Path(path)
    network = Run.open(path).load_model() if path.is_dir() else load_network(path)[0]
    return network.to(device)


def make_config(
    settings: Settings, network: Network, task_data: TaskData, threads: int, init_sha256: str | None = None
) -> dict[str, Any]:
    """The content of config.json; ``init_sha256`` is the hash of the file that ``init_from`` names."""
    config = {
        "format": FORMAT,
        "attnlab": attnlab.__version__,
        "torch": torch.__version__,
        "threads": threads,
        "settings": absolute(settings.flat()),
        "network": network.to_config(),
        "metric": task_data.metric,
        "unit": task_data.unit,
        "encoding": task_data.encoding,
        "data_sha256": file_hash(settings.data.data),
        "init_sha256": init_sha256,
    }
    config = json.loads(json.dumps(config))  # as it will be read
    config["id"] = _fingerprint(config)  # stays when the run is extended
    return {**config, "sha256": _fingerprint(config)}


def _fingerprint(config: dict[str, Any]) -> str:
    """The checksum of a config without its own."""
    content = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def has_same_content(run: Run, data: Path) -> bool:
    """Whether a file holds the data that a run was trained on."""
    recorded: str | None = run.config["data_sha256"]
    return recorded is not None and data.is_file() and file_hash(str(data)) == recorded


def check_data(run: Run, data: str | None = None) -> None:
    """Refuse to resume a run on other data; ``data`` is the new path of its file, None if it was not moved."""
    data = data or run.config["settings"]["data"]
    if data is None:
        return
    if not Path(data).is_file():
        raise UserError(
            f"{run.path} was trained on {shown(data)}, which no longer exists; restore it, or give its new path with "
            "--data"
        )
    if file_hash(data) != run.config["data_sha256"]:
        raise UserError(
            f"{shown(data)} was altered since {run.path} was started; restore the old file, or start a new run"
        )
