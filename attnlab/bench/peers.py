"""The packages of other libraries that are compared with, and their adapters in ``peers`` of a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from attnlab.utils.errors import UserError

PACKAGES = (
    *("x-transformers", "transformers", "keras", "local-attention", "performer-pytorch", "linformer"),
    *("nystrom-attention", "fla-core", "einops"),
)
"""The packages of the extra ``bench``."""

MODULES = {"fla-core": "fla"}
"""The modules whose names differ from those of their packages by more than hyphens."""


class MissingPeerError(UserError):
    """A package cannot be used; the message is one line with the reason and the command that helps."""


def module_of(package: str) -> str:
    """The name that the package is imported by."""
    return MODULES.get(package, package.replace("-", "_"))


def load(package: str, module: str = "") -> Any:
    """Import a package, or a module that needs it.

    Raises:
        MissingPeerError: it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec(module_of(package)) is None:
        raise MissingPeerError(f"{package} is not installed; pip install 'attnlab[bench]'")
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecations inside of the package
            return importlib.import_module(module or module_of(package))
    except Exception as error:  # an error in a package must not stop the other rows
        raise MissingPeerError(f"{package} cannot be imported ({type(error).__name__}: {error})") from None


def adapter(package: str) -> Any:
    """The module of a package in `peers.adapters`.

    Raises:
        MissingPeerError: the package cannot be used.
    """
    module = load(package, f"peers.adapters.{module_of(package)}")
    if package == "keras" and (backend := module.keras.backend.backend()) != "torch":
        raise MissingPeerError(f"keras uses the backend {backend}; set KERAS_BACKEND=torch")
    return module
