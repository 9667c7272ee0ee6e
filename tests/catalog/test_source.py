"""Reading a class from its source text, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from attnlab.catalog.source import REQUIRED, ClassSource, read_class
from attnlab.utils.errors import UserError

FILE = '''
"""A file that cannot be imported."""
import nowhere

raise SystemExit("nobody runs this")


class First:
    size = 3


class Second:
    """What it is.

    Args:
        width: how wide,
            over two lines.
        kind: which kind.
    """

    card = Card(title="A", supports=("x", "y"), year=-1)
    note: str = "typed"
    declared: int
    first, second = 1, 2
    made = size * 2
    grown = list(range(3))

    def __init__(self, width: int, height=2, *, kind: Literal["a", "b"] = "a", rest: float | Mask | None) -> None:
        pass
'''


def read(folder: Path, text: str, attribute: str) -> ClassSource:
    path = folder / "file.py"
    path.write_text(text, encoding="utf-8")
    return read_class(path, attribute)


def test_only_literals_are_read(tmp_path: Path) -> None:
    source = read(tmp_path, FILE, "card")
    assert (source.name, source.path) == ("Second", tmp_path / "file.py")
    assert source.attributes["card"] == {"title": "A", "supports": ("x", "y"), "year": -1}
    assert source.attributes["note"] == "typed"
    assert not {"declared", "first", "made"} & source.attributes.keys()


def test_options_are_those_of_the_constructor(tmp_path: Path) -> None:
    options = read(tmp_path, FILE, "card").options
    assert [(o.name, o.annotation, o.default, o.help, o.kinds) for o in options] == [
        ("width", "int", REQUIRED, "how wide, over two lines.", [int]),
        ("height", "str", 2, "", [str]),
        ("kind", "Literal['a', 'b']", "a", "which kind.", [Literal["a", "b"]]),
        ("rest", "float | Mask | None", REQUIRED, "", [float, None]),
    ]
    without_constructor = read(tmp_path, FILE, "size")
    assert (without_constructor.name, without_constructor.options) == ("First", ())


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.py cannot be read"):
        read_class(tmp_path / "none.py", "card")
