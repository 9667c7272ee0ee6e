"""Folder → class → card and options: the mechanisms, found by their presence in ``models/``.

Names, cards and options are read from the source text (`attnlab.catalog.source`); only `load` imports a mechanism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnlab
from attnlab.catalog.source import Option, read_class
from attnlab.nn.card import Card
from attnlab.utils.errors import UnknownNameError, UserError
from attnlab.utils.extras import install_advice

if TYPE_CHECKING:
    from attnlab.nn.attention import Attention


FACTORY = ("device", "dtype")
"""Arguments of every constructor that say where a layer is made, not what it is."""


@dataclass(frozen=True)
class Entry:
    """A mechanism as its source text describes it: its folder's name, its class, its card, its options."""

    name: str
    folder: Path
    class_name: str
    card: Card
    options: tuple[Option, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The new name of each option that is still accepted under an old name."""


def folder() -> Path:
    """Where the mechanisms stand: ``models/`` in a checkout, ``attnlab/models`` when installed."""
    return next(models for part in attnlab.__path__ if (models := Path(part) / "models").is_dir())


def checkout() -> Path | None:
    """The root of the repository; None where attnlab is installed and the mechanisms are part of the package."""
    return None if folder().parent == Path(attnlab.__file__).parent else folder().parent


def names() -> list[str]:
    """The mechanisms' names, in order: every folder ``NAME`` that holds a ``NAME.py``."""
    return sorted(p.name for p in folder().iterdir() if (p / f"{p.name}.py").is_file())


def entry(name: str) -> Entry:
    """What the source text of a mechanism says.

    Raises:
        UnknownNameError: for a name that no folder has.
        UserError: for a file that cannot be read, or whose card is incomplete.
    """
    if name not in names():
        raise UnknownNameError("model", name, names())
    source = read_class(folder() / name / f"{name}.py", "card")
    try:
        card = Card(**source.attributes["card"])
    except (TypeError, ValueError) as error:
        raise UserError(f"the card in {source.path} is wrong: {error}") from None
    options = tuple(option for option in source.options if option.name not in FACTORY)
    return Entry(name, folder() / name, source.name, card, options, source.renamed)


def current_names(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a mechanism with the names that they have now, in place of the old ones.

    Raises:
        UserError: when both names of an option are there.
    """
    renamed = entry(name).renamed
    for old in renamed.keys() & options.keys():
        if renamed[old] in options:
            raise UserError(f"{old} is the old name of {renamed[old]}; give {renamed[old]} alone")
    return {renamed.get(key, key): value for key, value in options.items()}


def load(name: str) -> type[Attention]:
    """The class of a mechanism.

    Raises:
        UnknownNameError: for a name that no folder has.
        UserError: for a folder that cannot be imported, with the reason.
    """
    described = entry(name)
    try:
        module = import_module(f"attnlab.models.{name}")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and install_advice(error.name):
            raise  # a dependency of attnlab, not a fault of the mechanism
        raise UserError(f"models/{name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, described.class_name, None)
    if found is None:
        raise UserError(f"models/{name}/__init__.py must import {described.class_name} from its file")
    return found
