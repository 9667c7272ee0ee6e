"""Train an attention mechanism: ``python main.py --help``."""

import sys
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("matplotlib", "numpy", "polars", "pydantic", "questionary", "rich", "safetensors", "sklearn", "torch", "tyro")
VENV = Path(__file__).resolve().parent / ".venv"


def missing_dependencies() -> str:
    """What this Python lacks and how to install it, in one line; empty if nothing is missing."""
    missing = ", ".join(name for name in NEEDED if find_spec(name) is None)
    if sys.version_info < (3, 11):  # noqa: UP036  (nothing has checked the version of a Python that runs a checkout)
        missing = f"Python 3.11 or newer (this is {sys.version.split()[0]})"
    if not missing:
        return ""
    if VENV.is_dir() and Path(sys.prefix) != VENV:
        return f"{sys.executable} lacks {missing}; activate the environment first: source .venv/bin/activate"
    return f"{sys.executable} lacks {missing}; run `make train`, which installs everything into .venv"


def main() -> int:
    """Run ``attnlab train`` with the arguments of this program."""
    error = missing_dependencies()
    if error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from attnlab import cli

    return cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
