"""What is imported where it is used: each extra by the name under which pip installs it."""

from __future__ import annotations

from importlib.util import find_spec

from attnlab.utils.errors import UserError

EXTRAS = {
    "hf": ("transformers",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "docs": ("mkdocs", "material", "mkdocstrings"),
}
"""The modules that an extra brings."""


class MissingExtraError(UserError, ImportError):
    """Something is not installed; the message says how to install it."""


def need(extra: str, what: str) -> None:
    """Refuse to go on without the modules of ``extra``.

    Args:
        extra: a name in `EXTRAS`.
        what: what needs it, the beginning of the message.

    Raises:
        MissingExtraError: naming what is missing, and the line that installs it.
    """
    missing = [module for module in EXTRAS[extra] if not find_spec(module)]
    if missing:
        raise MissingExtraError(f"{what} needs {' and '.join(missing)}; pip install 'attnlab[{extra}]'")
