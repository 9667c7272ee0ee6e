"""Escape text from files before it is shown in a terminal, a shell command or a Markdown page."""

from __future__ import annotations

import re
import shlex

_HIDDEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters except newline and tab, text direction controls, line separators, and lone surrogates."""
_UNSAFE = re.compile(f"[{_HIDDEN}]")
_UNSAFE_IN_LINE = re.compile(f"[\n\t{_HIDDEN}]")
_MARKDOWN = re.compile(r"[\\|`*\[\]]")


def visible(text: str) -> str:
    r"""The text with control characters but newline and tab as ``\x1b``, and controls of direction as ``\u202e``."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""The same, with newlines as ``\n`` and tabs as ``\t`` too."""
    return _UNSAFE_IN_LINE.sub(_escape, text)


def shell_word(word: str) -> str:
    """A word quoted for a shell, on one line: ``$'...'`` where it holds what would not be seen."""
    if not _UNSAFE_IN_LINE.search(word):
        return shlex.quote(word)
    quoted = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(quoted)}'"


def markdown(value: object) -> str:
    """A value as plain text in a cell of a Markdown table."""
    text = one_line(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(lambda sign: f"\\{sign[0]}", text)


def _escape(sign: re.Match[str]) -> str:
    return sign[0].encode("unicode_escape", "surrogatepass").decode()
