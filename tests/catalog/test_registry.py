"""The mechanisms as they are listed, beside what they are when imported; and folders that are broken."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import attnlab
from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED
from attnlab.nn.attention import Attention
from attnlab.nn.card import CAPABILITIES
from attnlab.utils.errors import UnknownNameError, UserError

GOOD = """
from attnlab.nn.attention import Attention, Card


class Stub(Attention):
    card = Card(
        title="Stub", summary="s", paper="p", authors="a", year=2024, arxiv=None, kind="exact", heads="1", time="n",
        memory="n", representation="r", use_case="u", supports=(),
    )
"""


@pytest.mark.parametrize("name", registry.names())
def test_what_is_read_is_what_is_imported(name: str) -> None:
    entry, found = registry.entry(name), registry.load(name)
    assert found.__name__ == entry.class_name
    assert found.card == entry.card
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name not in registry.FACTORY]
    assert [p.name for p in parameters] == [o.name for o in entry.options]
    for parameter, option in zip(parameters, entry.options, strict=True):
        assert (option.default is REQUIRED) == (parameter.default is inspect.Parameter.empty)
        assert option.default is REQUIRED or option.default == parameter.default
        assert option.annotation == parameter.annotation  # both are text
        assert option.help, f"the docstring of {name} does not say what {option.name} is"


@pytest.mark.parametrize("name", registry.names())
def test_a_mechanism_keeps_the_house_rules(name: str) -> None:
    entry, found = registry.entry(name), registry.load(name)
    assert issubclass(found, Attention)
    assert name.isidentifier()
    assert name == name.lower()
    parameters = inspect.signature(found).parameters
    assert next(iter(parameters)) == "embed_dim"
    assert all(parameters[option].kind is inspect.Parameter.KEYWORD_ONLY for option in ("causal", "dropout"))
    assert set(entry.card.supports) <= set(CAPABILITIES)
    for file in ("__init__.py", "reference.py", "README.md"):
        assert (entry.folder / file).is_file()
    assert callable(import_module(f"attnlab.models.{name}.reference").reference)


def test_an_unknown_name_suggests_the_nearest() -> None:
    for ask in (registry.entry, registry.load):
        with pytest.raises(UnknownNameError, match=r"unknown model 'multihed'; did you mean multihead\?$"):
            ask("multihed")
    with pytest.raises(UnknownNameError, match=r"unknown model 'zzz'; there are: .*multihead.*selfhead"):
        registry.entry("zzz")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of mechanisms of its own in place of models/."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "__init__.py").touch()
    monkeypatch.setattr(attnlab, "__path__", [str(Path(attnlab.__file__).parent), str(tmp_path)])
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("attnlab.models")}
    monkeypatch.delattr(attnlab, "models", raising=False)
    yield models
    for name in [name for name in sys.modules if name.startswith("attnlab.models")]:
        del sys.modules[name]
    sys.modules.update(kept)


def write(folder: Path, name: str, code: str, init: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(init or f"from .{name} import Stub as Stub\n", encoding="utf-8")
    (folder / name / f"{name}.py").write_text(code, encoding="utf-8")


def test_a_folder_is_listed_by_its_presence(folder: Path) -> None:
    assert registry.names() == []
    write(folder, "stub", GOOD)
    (folder / "__pycache__").mkdir()
    (folder / "unfinished").mkdir()
    (folder / "README.md").touch()
    assert registry.folder() == folder
    assert registry.names() == ["stub"]
    assert registry.entry("stub").card.title == "Stub"
    assert registry.entry("stub").folder == folder / "stub"
    assert registry.load("stub")(8).embed_dim == 8


def test_a_folder_that_cannot_be_imported_is_listed_and_says_why(folder: Path) -> None:
    write(folder, "stub", "import nowhere_at_all\n" + GOOD)
    assert registry.entry("stub").class_name == "Stub"
    with pytest.raises(UserError, match="models/stub cannot be imported: ModuleNotFoundError: No module named 'nowher"):
        registry.load("stub")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("class Stub(:", "cannot be read: invalid syntax"),
        ("class Stub:\n    pass\n", "has no class with `card = ...`"),
        (GOOD.replace('title="Stub", ', ""), "the card in .* is wrong: .*missing 1 required.*'title'"),
        (GOOD.replace('title="Stub"', 'titel="Stub"'), "is wrong: .*'titel'"),
        (GOOD.replace("supports=()", 'supports=("casual",)'), "is wrong: supports names 'casual'; did you mean causal"),
        (GOOD.replace('kind="exact"', 'kind="fast"'), "is wrong: kind is 'fast'"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(folder: Path, code: str, says: str) -> None:
    write(folder, "stub", code)
    for ask in (registry.entry, registry.load):
        with pytest.raises(UserError, match=says) as caught:
            ask("stub")
        assert str(folder / "stub" / "stub.py") in str(caught.value)


def test_a_folder_whose_package_hides_its_class(folder: Path) -> None:
    write(folder, "stub", GOOD, init="# empty\n")
    with pytest.raises(UserError, match=r"models/stub/__init__.py must import Stub from its file"):
        registry.load("stub")
