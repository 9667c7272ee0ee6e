"""Fast processes for tests: a server imports torch once and forks a process per command line."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


class Server:
    """Starts attnlab command lines as separate processes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str], folder: Path, **order: Any) -> int:
        """Start ``attnlab ARGUMENTS`` in ``folder``, with its output in files there; returns the process id.

        ``environment``: variables to set. ``log``: the prefix of the names of the files with its output.
        ``signal_at``: (step, signal), which it sends itself after that step. ``file_size``: the largest file that it
        may write once it has made that many steps: (step, bytes). ``kill_at``: (what, n), it kills itself before its
        n-th change of a file ("change") or in the middle of its n-th atomic write ("write"), whatever the speed of the
        machine; if it ends, it leaves how many of each there were in the file ``counted``.
        """
        return self._ask({"start": arguments, "folder": str(folder), **order})

    def wait(self, process: int) -> int:
        """The exit code of a process; -9 for one that was killed."""
        return self._ask({"wait": process})

    def close(self) -> None:
        """End the server."""
        self._process.communicate("")

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    """Answer each line of input with a number in one line."""
    for name in ("sklearn.datasets", "torch._dynamo", "attnlab.cli._progress", "attnlab.cli._format"):
        import_module(name)  # and all else that a run imports, before it is forked
    import attnlab.tasks.digits
    import attnlab.training.report

    # What takes long and does not depend on where a run was cut: the baselines and the picture.
    attnlab.tasks.digits.classifiers = lambda *_: []
    attnlab.training.report.draw_curve = lambda run, _: attnlab.training.report.write_text(run.path / "curve.png", "")
    gc.freeze()

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if not child:
            become(order)
        print(child, flush=True)


def become(order: dict[str, Any]) -> None:
    """Run the requested command line in this process."""
    code = 70
    try:
        folder = Path(order["folder"])
        os.chdir(folder)
        os.environ.update(order.get("environment", {}))
        for number, name in ((1, "stdout"), (2, "stderr")):
            name = order.get("log", "") + name
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        counted = count_changes(*order.get("kill_at", ("", 0)))
        watch_steps(order)
        code = call(order["start"])
        (folder / "counted").write_text(json.dumps(counted), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def call(arguments: list[str]) -> int:
    """Run a command line, or a function of a test: ``["test_x", "function"]``; returns the exit code."""
    if arguments[0].startswith("test_"):
        getattr(import_module(arguments[0]), arguments[1])()
        return 0
    from attnlab.cli import main

    return main(arguments)


def count_changes(what: str, number: int) -> dict[str, int]:
    """Count changes of files and writes, and kill this process at a given one."""
    from attnlab.files.atomic import UNFINISHED

    counted = {"change": 0, "write": 0}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[1] == "r" and UNFINISHED in str(args[0]):  # written, and to be flushed to the disk
            counted["write"] += 1
            if (what, number) == ("write", counted["write"]):
                os.truncate(args[0], Path(args[0]).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        if event in ("os.rename", "os.remove", "os.chmod") or (
            event == "open" and (args[1] in ("w", "a", "x") or args[2] & os.O_APPEND)
        ):
            counted["change"] += 1
            if (what, number) == ("change", counted["change"]):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


def watch_steps(order: dict[str, Any]) -> None:
    """Trigger a signal or a limit at a step."""
    from attnlab.training.loop import Trainer

    training_step = Trainer.training_step

    def watched(trainer: Trainer) -> Any:
        loss = training_step(trainer)
        if trainer.run is not None or trainer.processes.size > 1:  # not in the rehearsal
            if trainer.step == order.get("signal_at", [None])[0]:
                signal.raise_signal(order["signal_at"][1])  # to this thread, before the next step
            if trainer.step == order.get("file_size", [None])[0]:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"][1],) * 2)
        return loss

    Trainer.training_step = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
