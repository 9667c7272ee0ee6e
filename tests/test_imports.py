"""Imports run one way: a package imports only the packages below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [  # from the bottom; packages of one line do not import each other
    {"utils"},
    {"files", "masks"},
    {"ops"},
    {"positions"},
    {"nn"},
    {"catalog"},
    {"models"},
    {"checks", "network", "integrations"},
    {"tasks"},
    {"training"},
    {"analysis", "bench"},
    {"comparison"},
    {"claims"},
    {"docs"},
    {"explore"},
    {"cli"},
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in sorted(packages)}


def imports(file: Path) -> Iterator[str]:
    """The packages of attnlab that a file imports; imports for type checking alone do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and id(node) not in typing:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import) and id(node) not in typing:
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "attnlab" and rest.partition(".")[0] in LEVEL:
                yield rest.partition(".")[0]


def test_every_package_has_its_level() -> None:
    packages = {path.parent.name for path in (ROOT / "attnlab").glob("*/__init__.py")} | {"models"}
    assert packages == LEVEL.keys()


@pytest.mark.parametrize("package", LEVEL)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    folder = ROOT / "models" if package == "models" else ROOT / "attnlab" / package
    upward = {
        f"{file.relative_to(ROOT)} imports attnlab.{target}"
        for file in folder.rglob("*.py")
        if file.name != "figures.py"  # a lesson's figures belong to its documentation
        for target in imports(file)
        if target != package and LEVEL[target] >= LEVEL[package]
    }
    assert upward == set()
