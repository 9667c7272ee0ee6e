"""Reading a class from its source text, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnlab.catalog.source import REQUIRED, read_class
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

    def __init__(self, width: int, height=2, *, kind: Literal["a", "b"] = "a", rest: float | None) -> None:
        pass
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stranger.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_class_is_found_by_what_it_sets(file: Path) -> None:
    assert read_class(file, "size").name == "First"
    found = read_class(file, "card")
    assert (found.name, found.path) == ("Second", file)
    assert found.doc.startswith("What it is.")


def test_only_literals_are_read(file: Path) -> None:
    found = read_class(file, "card").attributes
    assert found["card"] == {"title": "A", "supports": ("x", "y"), "year": -1}
    assert found["note"] == "typed"
    assert not {"declared", "first", "made"} & found.keys()


def test_options_are_those_of_the_constructor(file: Path) -> None:
    found = [(o.name, o.annotation, o.default, o.help) for o in read_class(file, "card").options]
    assert found == [
        ("width", "int", REQUIRED, "how wide, over two lines."),
        ("height", "str", 2, ""),
        ("kind", "Literal['a', 'b']", "a", "which kind."),
        ("rest", "float | None", REQUIRED, ""),
    ]


def test_a_type_of_several_is_read_one_by_one(file: Path) -> None:
    found = {o.name: o.annotation_parts for o in read_class(file, "card").options}
    assert found["width"] == ["int"]
    assert found["kind"] == ["Literal['a', 'b']"]
    assert found["rest"] == ["float", "None"]


def test_a_class_without_a_constructor_has_no_options(file: Path) -> None:
    assert read_class(file, "size").options == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class A(:", "cannot be read: invalid syntax"),
        ("class A:\n    size = 3\n", r"has no class with `card = ...` in its body, written with literals only"),
        ("class A:\n    card = Card(title=f'{x}')\n", "written with literals only"),
        ("card = Card()\n", "has no class"),
        ("", "has no class"),
        (
            "class A:\n    card = Card()\n    def __init__(self, n: int = 2**7): ...\n",
            r"the default of n in .* is 2 \*\* 7; write a literal",
        ),
        ("x = '\0'", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as caught:
        read_class(path, "card")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_class(tmp_path / "none.py", "card")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_class(tmp_path / "bytes.py", "card")
