"""The naive PyTorch functions of flash-linear-attention (fla-core); its other functions need Triton and a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any


def naive(operation: str, function: str) -> Callable[..., Any]:
    """Return a function of ``fla/ops/OPERATION/naive.py``, loaded from its file, because the package imports Triton.

    Raises:
        ImportError: fla-core or einops, which it uses, is not installed.
    """
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        raise ImportError("fla-core is not installed; pip install 'attnlab[parity]'")
    loaded: Callable[..., Any] = getattr(_module(package.submodule_search_locations[0], operation), function)
    return loaded


@cache
def _module(folder: str, operation: str) -> ModuleType:
    path = f"{folder}/ops/{operation}/naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{operation.replace('/', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
