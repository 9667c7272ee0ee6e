"""The folder of a new mechanism, as ``attnlab new`` writes it.

`attnlab.catalog.template` is a working mechanism that the tests and the conformance suite check. It is copied under
the new name.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from attnlab.catalog import registry, stub
from attnlab.utils.errors import UserError

TEMPLATE = Path(__file__).parent / "template"
FILES = ("__init__.py", "template.py", "reference.py", "README.md")


def create(name: str) -> Path:
    """Write ``models/NAME`` atomically and return it.

    Raises:
        UserError: for an invalid or existing name; if attnlab is not a checkout; if the folder cannot be written.
    """
    _check(name)
    models = registry.folder()
    if registry.checkout() is None:
        raise UserError(
            f"attnlab is installed in {models}, where an update would delete a new mechanism; "
            "clone the repository and add it there (or subclass attnlab.Attention in your own code)"
        )
    target = models / name
    if target.exists():
        raise UserError(f"models/{name} exists already; choose another name, or edit the existing files")
    names = {"TemplateAttention": class_name(name), "Template": title(name), "template": name}
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    try:
        with TemporaryDirectory(prefix=".new-", dir=models) as temporary:
            draft = Path(temporary) / name
            draft.mkdir()
            for file in FILES:
                text = pattern.sub(lambda match: names[match[0]], (TEMPLATE / file).read_text(encoding="utf-8"))
                (draft / file.replace("template", name)).write_text(text, encoding="utf-8")
            draft.rename(target)
    except OSError as error:
        raise UserError(f"models/{name} cannot be written: {error.strerror}") from None
    stub.update()
    return target


def class_name(name: str) -> str:
    """Return the class name: MyAttention for ``my_attention``, SlidingWindowAttention for ``sliding_window``."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return camel if camel.endswith("Attention") else f"{camel}Attention"


def title(name: str) -> str:
    """Return the title: *Sliding window* for ``sliding_window``."""
    return " ".join(part for part in name.split("_") if part).capitalize()


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        proper = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
        near = proper if re.fullmatch(r"[a-z][a-z0-9_]*", proper) else "my_attention"
        raise UserError(
            f"{name!r} is not a valid name for a mechanism; use lower-case letters, digits and _, "
            f"starting with a letter, such as {near}"
        )
    if keyword.iskeyword(name):
        raise UserError(f"{name} is a Python keyword; try {name}_attention")
    if name in ("reference", "figures"):
        raise UserError(f"{name} is the name of another file in the folder of a mechanism; try {name}_attention")
