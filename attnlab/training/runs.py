"""The run folder: all that is known of one training run, and how to get its network back.

config.json        the settings, the network's shape, how the data were encoded
metrics.jsonl      a line an evaluation
model.safetensors  the best network on the validation data
state.safetensors  where training stands, to resume it
result.json        the held-out result beside its baselines, once training has ended
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
from attnlab.files.atomic import UNFINISHED, append_line, write_text
from attnlab.files.tensors import Shape, check_finite
from attnlab.network import Network
from attnlab.network.received import check_description, fill
from attnlab.training import folder, records
from attnlab.training.checkpoint import check_output, load_tensors, save_tensors
from attnlab.training.folder import RUNS
from attnlab.training.paths import absolute, shown
from attnlab.training.settings import Settings, defaults
from attnlab.training.settings import check as check_settings
from attnlab.training.state import check_state
from attnlab.utils.errors import UserError

FORMAT = 2


@dataclass(frozen=True)
class Damaged:
    """A run folder that cannot be read, and why."""

    path: Path
    reason: str


@dataclass
class Run:
    """One run's folder; ``path`` changes where the folder vanishes during training (see `alone`)."""

    path: Path
    config: dict[str, Any]
    _held: folder.Held | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def create(path: Path | None, config: dict[str, Any], *, overwrite: bool = False) -> Run:
        """A new folder with ``config`` in it, whole from the moment that it exists.

        Args:
            path: the folder; None takes the next free ``runs/TASK-MODEL-NNN``.
            config: what goes into config.json.
            overwrite: replace an earlier run.

        Raises:
            UserError: for a folder that exists, or cannot be made.
        """
        place = RUNS if path is None else Path(os.path.realpath(path))
        parent = place if path is None else place.parent
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
                path = folder.take_number(new, f"{config['settings']['task']}-{config['settings']['model']}")
            else:
                folder.check_run_dir(path, overwrite=overwrite)
                folder.replace(new, place)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise UserError(f"cannot make the run folder {path or parent}: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return Run(path, config)

    @staticmethod
    def open(path: Path) -> Run:
        """The run in a folder.

        Raises:
            UserError: for a folder that is missing, holds no run, or one that was altered.
        """
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
        """Keep other processes from training in this folder meanwhile; when this one dies, the system lets go of it.

        Where the folder is removed, moved or replaced meanwhile, what is written next goes to a new folder,
        ``NAME-recovered``, which is then this run's `path`.

        Raises:
            UserError: when another process trains here.
        """
        self._held = folder.Held(self.path)
        try:
            folder.remove_unfinished(self.path)  # by a process that was killed while it wrote
            yield
        finally:
            self._held.close()
            self._held = None

    def is_running(self) -> bool:
        """Whether a process trains in this folder."""
        return folder.is_locked(self.path)

    def place(self, name: str) -> Path:
        """Where a file of this run is to be written; see `alone` for a folder that has vanished.

        Raises:
            UserError: when no folder can be made.
        """
        if self._held is not None and self._held.gone():
            self.path = self._held.recover(self.config)
        return self.path / name

    def replace_config(self, changes: dict[str, Any]) -> Run:
        """Change the run's config and write its config.json, atomically; returns the run.

        The ``id`` stays, so the model and the state still belong to the run; a result of the earlier config no longer
        counts.
        """
        config = json.loads(json.dumps({**self.config, **changes}))
        config["sha256"] = _fingerprint(config)
        write_text(self.place("config.json"), records.write(records.Config, config))
        self.config = config
        return self

    @property
    def settings(self) -> Settings:
        """What the run was started with, or extended to."""
        said = self.config["settings"]
        settings = defaults(said["model"], said["task"]).updated(said, str(self.path / "config.json"))
        check_settings(settings)
        return settings

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinity become null.

        Raises:
            UserError: when it cannot be written, or is a link.
        """
        line = {name: None if value != value or abs(value) == float("inf") else value for name, value in line.items()}
        records.MetricsLine.model_validate(line)
        file = self.place("metrics.jsonl")
        append_line(file, json.dumps(line))
        if self._held is not None:
            self._held.keep(file)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a kill cut short is left out.

        Raises:
            UserError: for a file that was damaged otherwise.
        """
        file = self.path / "metrics.jsonl"
        return records.read_metrics(file, self.config["metric"]) if os.path.lexists(file) else []

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after ``step``: training takes up from there."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.place("metrics.jsonl"), "".join(kept))

    def save_model(self, network: Network, about: dict[str, Any]) -> None:
        """Keep these weights as the best so far."""
        said = {key: self.config[key] for key in ("attnlab", "encoding", "metric", "unit")}
        said |= {"task": self.config["settings"]["task"], "run": self.config["id"]}
        file = self.place("model.safetensors")
        save_network(file, network, {**said, **about})
        if self._held is not None:
            self._held.keep(file)

    def load_model(self) -> Network:
        """The best network so far, in eval mode.

        Raises:
            UserError: a file that is missing, damaged, or of another run.
        """
        file = self.place("model.safetensors")
        network, about = load_network(file, trained=True, follow=False)
        self._check_own("model.safetensors", about)
        wanted = {**self.config, "task": self.config["settings"]["task"]}
        for name in ("network", "encoding", "metric", "unit", "task"):
            if about[name] != wanted[name]:
                raise UserError(f"{file} has another {name} than the config.json beside it; restore it, or train again")
        return network

    def save_state(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Keep where training stands."""
        about = {"run": self.config["id"], **about}
        records.StateRecord.model_validate(about)
        save_tensors(self.place("state.safetensors"), tensors, about)

    def load_state(self, network: Network, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where training stands.

        Args:
            network: what the state is for; it is not changed.
            optimizer: of the network.

        Raises:
            UserError: a file that is missing, damaged, of another run, or of another network.
        """
        file = self.path / "state.safetensors"

        def check(about: dict[str, Any], shapes: dict[str, Shape]) -> None:
            self._check_own("state.safetensors", about)
            if "random.cpu" not in shapes:
                raise UserError(f"{file} holds a network alone; restore it, or train again")
            records.check(records.StateRecord, about, file)
            check_state(shapes, network, optimizer, file)

        tensors, about = load_tensors(file, check)
        check_finite(tensors, str(file))
        return tensors, about

    @property
    def began(self) -> bool:
        """Whether there is a checkpoint to go on from; before the first one a run starts at its beginning.

        Raises:
            UserError: when only the state of a run that began is missing.
        """
        if os.path.lexists(self.path / "state.safetensors"):
            return True
        if os.path.lexists(self.path / "model.safetensors") or self.metrics():
            raise UserError(f"{self.path} has lost its state.safetensors; restore it, or train again")
        return False

    def result(self) -> dict[str, Any] | None:
        """The held-out result; None while training has not ended, also where it was extended after an earlier end.

        Raises:
            UserError: for a file that was damaged.
        """
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
        """Write result.json: the run has ended then."""
        write_text(self.place("result.json"), records.write(records.Result, result))

    def export(self, path: Path) -> None:
        """Copy the best network to a file of the user's: .safetensors, .pth or .pt.

        Raises:
            UserError: a network that is missing or damaged, or a file that cannot be written.
        """
        self.load_model()
        try:
            Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; the network is in {self.path}") from None
        save_tensors(path, *load_tensors(self.path / "model.safetensors"), follow=True)

    def _check_own(self, name: str, about: dict[str, Any]) -> None:
        if about.get("run") != self.config["id"]:
            raise UserError(
                f"{self.path / name} belongs to another run than the config.json beside it; restore it, or train again"
            )


def save_network(path: Path, network: Network, about: dict[str, Any], *, follow: bool = False) -> None:
    """Write a network's weights and how to build it, atomically."""
    about = {"network": network.to_config(), **about}
    records.NetworkRecord.model_validate(about)
    save_tensors(path, network.state_dict(), about, follow=follow)


def load_network(path: Path, *, trained: bool = False, follow: bool = True) -> tuple[Network, dict[str, Any]]:
    """A network out of a checkpoint file, in eval mode, and what the file says of it.

    Nothing is allocated for a network whose description its tensors do not fit.

    Args:
        path: the file.
        trained: refuse a file that does not say what the network was trained on.
        follow: allow symbolic links.

    Raises:
        UserError: a file that is missing, damaged, has NaN or infinite weights, or needs a mechanism that is not there.
    """

    def check(about: dict[str, Any], shapes: dict[str, Shape]) -> None:
        check_description(about["network"], shapes, Network, str(path))
        records.check(records.TrainedNetworkRecord if trained else records.NetworkRecord, about, path)

    tensors, about = load_tensors(path, check, follow=follow)
    check_finite(tensors, f"the network in {path}")
    return fill(Network(**about["network"]), tensors), about


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Network:
    """The trained network of a run folder, or of a file written by ``--save_path``.

    Args:
        path: a run folder, or a .safetensors, .pth or .pt file.
        device: where the network shall be.

    Returns:
        The network, in eval mode; ``network.mechanisms()[0].attention_weights(...)`` shows what it looks at.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    path = Path(path)
    network = Run.open(path).load_model() if path.is_dir() else load_network(path)[0]
    return network.to(device)


def make_config(
    settings: Settings, network: Network, task_data: Any, threads: int, init_sha256: str | None = None
) -> dict[str, Any]:
    """What config.json holds; ``init_sha256`` is the hash of the file that ``init_from`` names."""
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
    config = json.loads(json.dumps(config))  # as it will be read back
    config["id"] = _fingerprint(config)  # of the run, which stays when the run is extended
    return {**config, "sha256": _fingerprint(config)}


def _fingerprint(config: dict[str, Any]) -> str:
    """The checksum of a config without its own."""
    said = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_hash(path: str | None) -> str | None:
    """The SHA-256 of the user's file; None without one."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_its_data(run: Run, data: Path) -> bool:
    """Whether a file holds the data that a run was trained on, wherever it lies now."""
    recorded: str | None = run.config["data_sha256"]
    return recorded is not None and data.is_file() and file_hash(str(data)) == recorded


def check_data(run: Run, data: str | None = None) -> None:
    """Refuse to go on with data other than those that the run was started with.

    Args:
        run: the run.
        data: where its file is now; None where it was.

    Raises:
        UserError: when the file is gone or altered.
    """
    data = data or run.config["settings"]["data"]
    if data is None:
        return
    if not Path(data).is_file():
        raise UserError(
            f"{run.path} was trained on {shown(data)}, which is not there any more; put it back, or name its new "
            "place with --data"
        )
    if file_hash(data) != run.config["data_sha256"]:
        raise UserError(
            f"{shown(data)} was altered since {run.path} was started; put the old file back, or start a new run"
        )


def find(place: Path = RUNS) -> list[Run | Damaged]:
    """The runs below a folder, by name, with those that cannot be read; other folders are passed over."""
    if not place.is_dir():
        return []
    folder.sweep(place)
    found: list[Run | Damaged] = []
    for path in sorted(place.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        try:
            run = Run.open(path)
            run.metrics()
            run.result()
            found.append(run)
        except UserError as error:
            if any(os.path.lexists(path / name) for name in folder.RUN_FILES[:4]):
                found.append(Damaged(path, str(error)))
    return found


def check_save_path(path: Path, *, overwrite: bool = False) -> None:
    """Find out before training whether the result can be saved there, leaving nothing behind.

    Raises:
        UserError: for an ending that is not known, a folder, a file that attnlab did not write (without
            ``overwrite``), a file of a run, or a place that cannot be written to.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"--save_path {path} must end in .safetensors, .pth or .pt")
    try:
        check_output(path, overwrite=overwrite, flag="--save_path", ours=True)
        folder.try_to_make(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write --save_path {path}: {error.strerror}") from None
    end = Path(os.path.realpath(path))
    if end.name in folder.RUN_FILES and folder.looks_like_a_run(end.parent):
        raise UserError(f"--save_path {path} is a file of the run in {end.parent}; give another name")
