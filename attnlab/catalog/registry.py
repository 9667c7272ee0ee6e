"""The mechanisms in ``models/``: the class, card and options of every folder.

Cards and options are read from the source text (`attnlab.catalog.source`), because importing torch takes seconds. Only
`load` imports a mechanism.
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
"""Constructor arguments that are not options of a mechanism."""


@dataclass(frozen=True)
class Entry:
    """A mechanism as its source text describes it."""

    name: str
    folder: Path
    class_name: str
    card: Card
    options: tuple[Option, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The new names of options that are still accepted under an old name."""


def folder() -> Path:
    """Return the folder of the mechanisms: ``models/`` in a checkout, ``attnlab/models`` when installed."""
    return next(models for part in attnlab.__path__ if (models := Path(part) / "models").is_dir())


def checkout() -> Path | None:
    """Return the root of the repository; None if attnlab is installed."""
    return None if folder().parent == Path(attnlab.__file__).parent else folder().parent


def names() -> list[str]:
    """Return the sorted names of the mechanisms: every folder ``NAME`` that contains a ``NAME.py``."""
    return sorted(p.name for p in folder().iterdir() if (p / f"{p.name}.py").is_file())


def entry(name: str) -> Entry:
    """Return the description of a mechanism, read from its source text.

    Raises:
        UnknownNameError: for an unknown name.
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


def family(name: str) -> list[str]:
    """Return a mechanism and its descendants by the ``parent`` on their cards, the mechanism first, the others sorted.

    Raises:
        UnknownNameError: for an unknown name.
    """
    parents = {each: entry(each).card.parent for each in names()}
    if name not in parents:
        raise UnknownNameError("model", name, parents)
    members = {name}
    while children := {child for child, parent in parents.items() if parent in members} - members:
        members |= children
    return [name, *sorted(members - {name})]


def current_names(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` of a mechanism with old names replaced by new ones.

    Raises:
        UserError: if an option is given under both names.
    """
    return with_current_names(options, entry(name).renamed)


def with_current_names(options: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return ``options`` with old names replaced by the new ones in ``renamed``.

    Raises:
        UserError: if an option is given under both names.
    """
    for old in renamed.keys() & options.keys():
        if renamed[old] in options:
            raise UserError(f"{old} is the old name of {renamed[old]}; give {renamed[old]} alone")
    return {renamed.get(key, key): value for key, value in options.items()}


def load(name: str) -> type[Attention]:
    """Import a mechanism and return its class.

    Raises:
        UnknownNameError: for an unknown name.
        UserError: for a folder that cannot be imported, with the reason.
    """
    description = entry(name)
    try:
        module = import_module(f"attnlab.models.{name}")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and install_advice(error.name):
            raise  # a dependency of attnlab, not a fault of the mechanism
        raise UserError(f"models/{name} cannot be imported: {type(error).__name__}: {error}") from error
    model = getattr(module, description.class_name, None)
    if model is None:
        raise UserError(f"models/{name}/__init__.py must import {description.class_name} from its file")
    return model
