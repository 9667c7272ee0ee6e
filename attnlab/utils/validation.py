"""One-line messages for pydantic's validation errors."""

from __future__ import annotations

from pydantic import ValidationError


def first_error(error: ValidationError) -> str:
    """The first wrong field, in one line: its path, its value and what was expected."""
    details = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in details["loc"] if not str(part).startswith(("function", "tuple[", "constr")))
    value = "" if details["type"] in ("missing", "extra_forbidden") else f" ({ascii(details['input'])[:60]})"
    return f"{path or 'the value'}{value}: {details['msg'][0].lower()}{details['msg'][1:]}"


def expected(error: ValidationError) -> str:
    """What pydantic expected of a value: ``a valid integer or a valid string``."""
    messages = (details["msg"] for details in error.errors(include_url=False, include_context=False))
    return " or ".join(dict.fromkeys(message.removeprefix("Input should be ") for message in messages))
