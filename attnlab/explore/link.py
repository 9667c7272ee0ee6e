"""Links to a view: the differences of a setup from the defaults, as the fragment of an address.

``#source.kind=untrained&source.model=linear&head=1.2`` sets fields by their path. page/setup.js reads and writes the
same.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

from attnlab.explore.setup import Setup


def fragment(setup: Setup, **place: str) -> str:
    """Return ``#...`` for a setup and a place in it, such as ``head="1.2"``; empty for the default view."""
    pairs = {**_differences(setup), **place}
    parts = [f"{path}={quote_plus(value, safe='[],:/@!()*~')}" for path, value in pairs.items()]
    return "#" + "&".join(parts) if parts else ""


def _differences(setup: Setup) -> dict[str, str]:
    default, pairs = Setup(), {}
    for name in Setup.model_fields:
        value, usual = getattr(setup, name), getattr(default, name)
        if name == "ablated":
            if value != usual:
                pairs[name] = _json(value)
            continue
        if type(value) is not type(usual):
            pairs[f"{name}.kind"] = value.kind
        for field, declared in type(value).model_fields.items():
            each = getattr(value, field)
            if field == "kind" or (not declared.is_required() and each == declared.get_default()):
                continue
            if field == "options":
                pairs |= {f"{name}.options.{option}": _text(chosen) for option, chosen in each.items()}
            else:
                pairs[f"{name}.{field}"] = each if isinstance(each, str) else _json(each)
    return pairs


def _text(value: Any) -> str:
    """A value whose type is not known from its name: a string that is JSON, such as "1", is quoted."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
