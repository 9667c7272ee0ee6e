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
def test_what_is_read_is_what_is_imported_and_keeps_the_house_rules(name: str) -> None:
    entry, mechanism = registry.entry(name), registry.load(name)
    assert issubclass(mechanism, Attention)
    assert (mechanism.__name__, mechanism.card) == (entry.class_name, entry.card)
    parameters = inspect.signature(mechanism).parameters
    assert next(iter(parameters)) == "embed_dim"
    assert all(parameters[option].kind is inspect.Parameter.KEYWORD_ONLY for option in ("causal", "dropout"))
    read = {option.name: (option.default, option.annotation) for option in entry.options}
    assert read == {
        p.name: (REQUIRED if p.default is p.empty else p.default, p.annotation)
        for p in parameters.values()
        if p.name not in registry.FACTORY
    }
    assert all(option.help for option in entry.options), "the docstring describes every option"
    assert name.isidentifier()
    assert name == name.lower()
    assert all((entry.folder / file).is_file() for file in ("__init__.py", "reference.py", "README.md"))
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


def write(folder: Path, name: str, code: str | bytes, init: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(init or f"from .{name} import Stub as Stub\n", encoding="utf-8")
    (folder / name / f"{name}.py").write_bytes(code if isinstance(code, bytes) else code.encode())


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


@pytest.mark.parametrize(
    ("code", "init", "says"),
    [
        ("import nowhere_at_all\n", "", "models/stub cannot be imported: ModuleNotFoundError: No module named 'nowher"),
        ("", "# empty\n", "models/stub/__init__.py must import Stub from its file"),
    ],
)
def test_a_folder_that_cannot_be_imported_is_listed_and_says_why(folder: Path, code: str, init: str, says: str) -> None:
    write(folder, "stub", code + GOOD, init)
    assert registry.entry("stub").class_name == "Stub"
    with pytest.raises(UserError, match=says):
        registry.load("stub")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("class Stub(:", "cannot be read: invalid syntax"),
        ("x = '\0'", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("", "has no class with `card = ...` in its body, written with literals only"),
        ("class Stub:\n    size = 3\n", "has no class"),
        ("card = Card()\n", "has no class"),
        ("class Stub:\n    card = Card(title=f'{x}')\n", "written with literals only"),
        (f"{GOOD}\n    def __init__(self, n: int = 2**7): ...\n", r"default of n in .* is 2 \*\* 7; write a literal"),
        (GOOD.replace('title="Stub", ', ""), "the card in .* is wrong: .*missing 1 required.*'title'"),
        (GOOD.replace('title="Stub"', 'titel="Stub"'), "is wrong: .*'titel'"),
        (GOOD.replace("supports=()", 'supports=("casual",)'), "is wrong: supports names 'casual'; did you mean causal"),
        (GOOD.replace('kind="exact"', 'kind="fast"'), "is wrong: kind is 'fast'"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(folder: Path, code: str | bytes, says: str) -> None:
    write(folder, "stub", code)
    for ask in (registry.entry, registry.load):
        with pytest.raises(UserError, match=says) as caught:
            ask("stub")
        assert str(folder / "stub" / "stub.py") in str(caught.value)
        assert "\n" not in str(caught.value)
