"""Faulty layers: attention with one error each, and the check that must detect it.

Most replace one method of `Plain`; the name or the docstring states the error. Every module here is imported. None is
named ``reference``: a module of that name beside a layer is taken for its reference implementation.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from plain import FAULTY as FAULTY

for _module in pkgutil.iter_modules(__path__):
    import_module(f"faulty.{_module.name}")
