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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attnlab
from attnlab.errors import UserError
from attnlab.network import Network
from attnlab.training.checkpoint import UNFINISHED, load_tensors, save_tensors, write_text
from attnlab.training.paths import absolute, shown
from attnlab.training.settings import Settings, defaults

try:
    import fcntl
except ImportError:  # a system without it: two processes in one folder are then not found out
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
RUNS = Path("runs")


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path
    config: dict[str, Any]

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
            _sweep(parent)
            new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        except OSError as error:
            raise UserError(f"cannot make a run folder in {parent}: {error.strerror}") from None
        try:
            new.chmod(0o755)
            write_text(new / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            if path is None:
                path = _take_number(new, f"{config['settings']['task']}-{config['settings']['model']}")
            else:
                check_run_dir(path, overwrite=overwrite)
                _replace(new, place)
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
            UserError: for a folder that is missing or holds no run.
        """
        file = path / "config.json"
        if not file.is_file():
            raise UserError(f"{path} is no run folder (it has no config.json); attnlab runs lists those there are")
        try:
            config = json.loads(file.read_text("utf-8"))
            version, fingerprint = config["format"], config["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{file} was not written by attnlab, or altered; restore it, or train again") from None
        if version != FORMAT:
            raise UserError(f"{path} has format {version}; this attnlab reads format {FORMAT}")
        if fingerprint != _fingerprint(config):
            raise UserError(f"{file} was altered: its checksum does not match; restore it, or train again")
        return Run(path, config)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training in this folder meanwhile; when this one dies, the system lets go of it.

        Raises:
            UserError: when another process trains here.
        """
        with contextlib.ExitStack() as stack:
            if fcntl is not None:
                folder = os.open(self.path, os.O_RDONLY)
                stack.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(f"another process is training in {self.path}; wait for it, or stop it") from None
                except OSError:  # a file system without locks
                    pass
            for left in self.path.glob(f"{UNFINISHED}*"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield

    def replace_config(self, changes: dict[str, Any]) -> Run:
        """The run with ``changes`` in its config.json, written atomically.

        The ``id`` stays, so the model and the state still belong to the run; a result of the earlier config no longer
        counts.
        """
        config = json.loads(json.dumps({**self.config, **changes}))
        config["sha256"] = _fingerprint(config)
        write_text(self.path / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        return Run(self.path, config)

    def is_running(self) -> bool:
        """Whether a process trains in the folder now; False where the system has no locks."""
        if fcntl is None:
            return False
        with contextlib.ExitStack() as stack:
            try:
                folder = os.open(self.path, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks, a folder that has gone
                return False
        return False

    @property
    def settings(self) -> Settings:
        """What the run was started with, or extended to."""
        said = self.config["settings"]
        return defaults(said["model"], said["task"]).updated(said, str(self.path / "config.json"))

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a kill cut short is left out.

        Raises:
            UserError: for a file that was damaged otherwise.
        """
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            if not all(isinstance(line["step"], int) for line in found):
                raise ValueError("a line has no step")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{file} is damaged; restore it, or train again") from None
        return found

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after ``step``: training takes up from there."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(kept))

    def save_model(self, network: Network, about: dict[str, Any]) -> None:
        """Keep these weights as the best so far."""
        said = {key: self.config[key] for key in ("attnlab", "encoding", "metric", "unit")}
        said |= {"task": self.config["settings"]["task"], "run": self.config["id"]}
        save_network(self.path / "model.safetensors", network, {**said, **about})

    def load_model(self) -> Network:
        """The best network so far, in eval mode.

        Raises:
            UserError: a file that is missing, damaged, or of another run.
        """
        network, about = load_network(self.path / "model.safetensors")
        self._check_own("model.safetensors", about)
        return network

    def save_state(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Keep where training stands."""
        save_tensors(self.path / "state.safetensors", tensors, {"run": self.config["id"], **about})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where training stands.

        Raises:
            UserError: a file that is missing, damaged, or of another run.
        """
        tensors, about = load_tensors(self.path / "state.safetensors")
        self._check_own("state.safetensors", about)
        if "random.cpu" not in tensors:
            raise UserError(f"{self.path / 'state.safetensors'} holds a network alone; restore it, or train again")
        return tensors, about

    @property
    def began(self) -> bool:
        """Whether there is a checkpoint to go on from; before the first one a run starts at its beginning.

        Raises:
            UserError: when only the state of a run that began is missing.
        """
        if (self.path / "state.safetensors").is_file():
            return True
        if (self.path / "model.safetensors").is_file() or self.metrics():
            raise UserError(f"{self.path} has lost its state.safetensors; restore it, or train again")
        return False

    def result(self) -> dict[str, Any] | None:
        """The held-out result; None while training has not ended, also where it was extended after an earlier end.

        Raises:
            UserError: for a file that was damaged.
        """
        file = self.path / "result.json"
        try:
            found = json.loads(file.read_text("utf-8")) if file.is_file() else None
            if found is not None and not {"test", "metric", "baselines", "ended", "config"} <= set(found):
                raise ValueError("the result is not among it")
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{file} is damaged; remove it, and --resume {self.path} makes it again") from None
        return found if found is not None and found["config"] == self.config["sha256"] else None

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
        save_tensors(path, *load_tensors(self.path / "model.safetensors"))

    def _check_own(self, name: str, about: dict[str, Any]) -> None:
        if about.get("run") != self.config["id"]:
            raise UserError(
                f"{self.path / name} belongs to another run than the config.json beside it; restore it, or train again"
            )


def save_network(path: Path, network: Network, about: dict[str, Any]) -> None:
    """Write a network's weights and how to build it, atomically."""
    save_tensors(path, network.state_dict(), {"network": describe(network), **about})


def load_network(path: Path) -> tuple[Network, dict[str, Any]]:
    """A network out of a checkpoint file, in eval mode, and what the file says of it.

    Raises:
        UserError: a file that is missing, damaged, or needs a mechanism that is not there.
    """
    tensors, about = load_tensors(path)
    try:
        network = Network(**about["network"])
        network.to(next(iter(tensors.values())).dtype)
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit the network that it describes: {reason}") from None
    return network.eval(), about


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Network:
    """The trained network of a run folder, or of a file written by ``--save_path``.

    Args:
        path: a run folder, or a .safetensors, .pth or .pt file.
        device: where the network shall be.

    Returns:
        The network, in eval mode; ``network.mechanisms()[0].weights(...)`` shows what it looks at.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    path = Path(path)
    network = Run.open(path).load_model() if path.is_dir() else load_network(path)[0]
    return network.to(device)


def describe(network: Network) -> dict[str, Any]:
    """The arguments that build this network again, as JSON gives them back."""
    config: dict[str, Any] = json.loads(json.dumps(network._hub_mixin_config))
    return config


def make_config(
    settings: Settings, network: Network, problem: Any, threads: int, init_sha256: str | None = None
) -> dict[str, Any]:
    """What config.json holds; ``init_sha256`` is the hash of the file that ``init_from`` names."""
    config = {
        "format": FORMAT,
        "attnlab": attnlab.__version__,
        "torch": torch.__version__,
        "threads": threads,
        "settings": absolute(settings.flat()),
        "network": describe(network),
        "metric": problem.metric,
        "unit": problem.unit,
        "encoding": problem.encoding,
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


def check_data(run: Run) -> None:
    """Refuse to go on with data other than those that the run was started with.

    Raises:
        UserError: when the file is gone or altered.
    """
    data = run.config["settings"]["data"]
    if data is None:
        return
    if not Path(data).is_file():
        raise UserError(f"{run.path} was trained on {shown(data)}, which is not there any more; put it back")
    if file_hash(data) != run.config["data_sha256"]:
        raise UserError(
            f"{shown(data)} was altered since {run.path} was started; put the old file back, or start a new run"
        )


@dataclass(frozen=True)
class Damaged:
    """A run's folder that cannot be read, and why."""

    path: Path
    reason: str


def find(folder: Path = RUNS) -> list[Run | Damaged]:
    """The runs in ``folder``, by name; a folder without a config.json is passed over."""
    found: list[Run | Damaged] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.name.startswith(".") and (path / "config.json").is_file():
            try:
                found.append(Run.open(path))
            except UserError as error:
                found.append(Damaged(path, str(error)))
    return found


def check_save_path(path: Path) -> None:
    """Find out before training whether the result can be saved there, leaving nothing behind.

    Raises:
        UserError: for an ending that is not known, a folder, or a place that cannot be written to.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"--save_path {path} must end in .safetensors, .pth or .pt")
    try:
        if path.is_dir():
            raise UserError(f"--save_path {path} is a folder; name a file in it")
        _try_to_make(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write --save_path {path}: {error.strerror}") from None


def _try_to_make(path: Path) -> None:
    """Whether a file or a folder could be made there, leaving nothing behind.

    Raises:
        OSError: when not.
    """
    place = Path(os.path.realpath(path))  # where a link leads to
    folder = place.parent
    while not os.path.lexists(folder):  # it will be made; can it be?
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in place.relative_to(folder).parts:  # may a file here be called so?
        with contextlib.suppress(FileNotFoundError):
            (folder / name).lstat()


def check_run_dir(path: Path, *, overwrite: bool) -> None:
    """Find out before training whether a run folder can be made there.

    Raises:
        UserError: for a place that cannot be written to, a folder that exists (without ``overwrite``), or one that
            ``overwrite`` would destroy though it is no run.
    """
    try:
        _try_to_make(path)
    except OSError as error:
        raise UserError(f"cannot make --run_dir {path}: {error.strerror}") from None
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists; give another --run_dir, --resume {path}, or --overwrite to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not _looks_like_a_run(path)):
        raise UserError(f"--overwrite replaces run folders only, and {path} is none; give another --run_dir")


def _looks_like_a_run(path: Path) -> bool:
    """Whether the config.json in a folder is one of ours, be it damaged."""
    try:
        return {"format", "attnlab", "settings"} <= set(json.loads((path / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _sweep(folder: Path) -> None:
    """Remove run folders that a killed process left half made; those younger than an hour may be in the making."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left)


def _take_number(new: Path, stem: str) -> Path:
    number = 1
    while True:
        path = RUNS / f"{stem}-{number:03d}"
        try:
            path.mkdir()  # whoever makes it first has the number
        except FileExistsError:
            number += 1
            continue
        new.replace(path)
        return path


def _replace(new: Path, path: Path) -> None:
    """Put ``new`` where ``path`` is; whatever is there goes when it does."""
    if not path.exists():
        new.replace(path)
        return
    with Run(path, {}).alone():
        old = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
        path.replace(old)
        new.replace(path)
        shutil.rmtree(old, ignore_errors=True)
