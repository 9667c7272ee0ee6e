"""A new mechanism: the folder that ``attnlab new`` writes, working from the first minute.

`attnlab.catalog.template` is a mechanism like any other (typed, tested, checked by the conformance suite); it is
copied under the new name, so that what is written is what was tested.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from attnlab.catalog import registry
from attnlab.utils.errors import UserError

TEMPLATE = Path(__file__).parent / "template"
FILES = ("__init__.py", "template.py", "reference.py", "README.md")
TAKEN = ("reference", "figures")  # the names of other files in such a folder


def create(name: str) -> Path:
    """Write ``models/NAME`` and return it; it appears whole or not at all.

    Raises:
        UserError: for a name that cannot be or is taken; where attnlab is installed and not a checkout; where the
            folder cannot be written.
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
        raise UserError(f"models/{name} exists already; choose another name, or edit what is there")
    words = {"TemplateAttention": class_name(name), "Template": title(name), "template": name}
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    try:
        with TemporaryDirectory(prefix=".new-", dir=models) as temporary:
            draft = Path(temporary) / name
            draft.mkdir()
            for file in FILES:
                text = pattern.sub(lambda word: words[word[0]], (TEMPLATE / file).read_text(encoding="utf-8"))
                (draft / file.replace("template", name)).write_text(text, encoding="utf-8")
            draft.rename(target)
    except OSError as error:
        raise UserError(f"models/{name} cannot be written: {error.strerror}") from None
    return target


def class_name(name: str) -> str:
    """``my_attention`` as MyAttention, ``sliding_window`` as SlidingWindowAttention."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return camel if camel.endswith("Attention") else f"{camel}Attention"


def title(name: str) -> str:
    """``sliding_window`` as *Sliding window*."""
    return " ".join(part for part in name.split("_") if part).capitalize()


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        proper = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
        near = proper if re.fullmatch(r"[a-z][a-z0-9_]*", proper) else "my_attention"
        raise UserError(
            f"{name!r} is no name for a mechanism; use lower-case letters, digits and _, "
            f"starting with a letter, such as {near}"
        )
    if keyword.iskeyword(name) or name in TAKEN:
        kind = "a word of Python" if keyword.iskeyword(name) else "another file of a mechanism's folder"
        raise UserError(f"{name} is {kind} and cannot be a mechanism's name; try {name}_attention")
