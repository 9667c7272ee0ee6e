"""Optional dependencies: what each extra installs, and one line that says how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from attnlab.utils.errors import UserError

CORE = ("torch", "numpy", "safetensors", "jaxtyping")
"""The modules that the layers import."""

EXTRAS = {
    "train": (
        *("docstring_parser", "huggingface_hub", "jinja2", "matplotlib", "polars", "pydantic"),
        *("questionary", "rich", "scipy", "sklearn", "tyro"),
    ),
    "hf": ("transformers",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "explore": ("fastapi", "uvicorn"),
    "ray": ("ray",),
    "docs": ("mkdocs", "material", "mkdocstrings"),
}
"""The modules that each extra installs."""

_PACKAGES = {"sklearn": "scikit-learn", "material": "mkdocs-material"}


class MissingExtraError(UserError, ImportError):
    """Something is not installed; the message says how to install it."""


def need(extra: str, what: str) -> None:
    """Raise MissingExtraError if a module of ``extra``, which ``what`` needs, is not installed."""
    missing = [_package(module) for module in EXTRAS[extra] if not find_spec(module)]
    if missing:
        raise MissingExtraError(f"{what} needs {' and '.join(missing)}; pip install 'attnlab[{extra}]'")


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Replace a ModuleNotFoundError for a dependency by a MissingExtraError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if advice := install_advice(error.name):
            raise MissingExtraError(
                f"{what} needs {_package(error.name or '')}, which is not installed: {advice}"
            ) from None
        raise


def install_advice(module: str | None) -> str:
    """Return the command that installs ``module``; empty if it is not a dependency."""
    name = (module or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    if name not in CORE and extra is None:
        return ""
    command = "pip install attnlab" if extra is None else f"pip install 'attnlab[{extra}]'"
    if extra in (None, "train") and (Path(__file__).parents[2] / "Makefile").is_file():  # a checkout
        return f"run `make train`, or activate its environment (. .venv/bin/activate), or {command}"
    return command


def _package(module: str) -> str:
    name = module.partition(".")[0]
    return _PACKAGES.get(name, name.replace("_", "-"))
