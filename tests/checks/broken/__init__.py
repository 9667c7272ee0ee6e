"""Attention that is wrong in one way each, and the promise that must notice it: a file for each file of promises.

Most override one method of `MultiAttention`; what they do wrong is in their docstring. The files are found by their
presence; what breaks promises/reference.py stands in formula.py, for a `reference` beside a layer is taken for its own.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from broken._twins import TWINS as TWINS

for _module in pkgutil.iter_modules(__path__):
    import_module(f"broken.{_module.name}")
