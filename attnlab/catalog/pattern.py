"""Patterns of mechanisms over the layers of a network, such as ``3*linear,multihead``; torch is not imported.

Grammar: entries ``NAME`` or ``COUNT*NAME``, separated by commas. The entries describe one period, which is repeated
over the layers; where their number is no multiple of the period, the last repetition is cut.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

from attnlab.catalog import registry
from attnlab.utils.errors import UnknownNameError, UserError

MAX_CHARACTERS = 1_000
"""The longest text of a pattern."""
MAX_PERIOD = 1_000
"""The most layers in one period: the most that a network may have."""

NETWORK_ARGUMENTS = ("embed_dim", "causal", "dropout")
"""Constructor arguments that a network gives to all of its layers; they are no options of a single mechanism there."""


def period(model: str) -> tuple[str, ...]:
    """Return the mechanism of each layer in one period of a pattern; a name alone is a pattern of one layer.

    Raises:
        UnknownNameError: for an unknown mechanism.
        UserError: for a pattern that is malformed, or longer than `MAX_CHARACTERS` or `MAX_PERIOD`.
    """
    if len(model) > MAX_CHARACTERS:
        raise UserError(f"the pattern of mechanisms has {len(model):,} characters; the limit is {MAX_CHARACTERS:,}")
    known = registry.names()
    if model in known:
        return (model,)
    layers: list[str] = []
    for entry in model.split(","):
        count, name = _parse_entry(entry.strip(), model)
        if name not in known:
            raise UnknownNameError("model", name, known)
        if len(layers) + count > MAX_PERIOD:
            raise UserError(f"the pattern {_quoted(model)} has more than {MAX_PERIOD:,} layers, the limit")
        layers += [name] * count
    return tuple(layers)


def mechanisms(model: str) -> tuple[str, ...]:
    """Return the mechanisms of a pattern, each once, in the order in which they appear; raises what `period` does."""
    return tuple(dict.fromkeys(period(model)))


def layer_names(model: str, layers: int) -> list[str]:
    """Return the mechanism of each of the ``layers``, first to last.

    Raises:
        ValueError: for fewer layers than one period of a pattern has, so that a mechanism could be missing.
        UserError: what `period` raises.
    """
    names = period(model)
    if len(names) > max(layers, 1):
        raise ValueError(f"layers ({layers}) must be at least {len(names)}, the layers in one period of {model}")
    return list(islice(cycle(names), layers))


def options_by_mechanism(model: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each mechanism of a pattern, under their current names.

    Args:
        model: a pattern, or a name.
        options: an option by its name is given to every mechanism that has it; ``{"linear": {...}}`` are options of
            one mechanism, which take precedence. Those of a network with one mechanism are not checked here.

    Raises:
        TypeError: for an option that no mechanism has, options of a mechanism outside of the pattern, or an argument
            of the network.
        UserError: if an option is given under its old and its new name, and what `period` raises.
    """
    used = mechanisms(model)
    single = {name: dict(value) for name, value in options.items() if isinstance(value, Mapping)}
    shared = {name: value for name, value in options.items() if name not in single}
    if outside := [name for name in single if name not in used]:
        raise TypeError(f"there are options for {_short(outside[0])}, but {model} has {' and '.join(used)}")
    if len(used) == 1:
        return {used[0]: registry.current_names(used[0], {**shared, **single.get(used[0], {})})}
    entries = {name: registry.entry(name) for name in used}
    known = {name: {option.name for option in entry.options} | set(entry.renamed) for name, entry in entries.items()}
    for option in shared:
        if not any(option in known[name] for name in used):
            raise TypeError(f"no mechanism of {model} has an option {_short(option)}; {_advice(option)}")
    result = {}
    for name in used:
        if unknown := [option for option in single.get(name, {}) if option not in known[name]]:
            raise TypeError(f"{name} has no option {_short(unknown[0])}; it has {', '.join(sorted(known[name]))}")
        current = registry.current_names(name, {o: value for o, value in shared.items() if o in known[name]})
        result[name] = current | registry.current_names(name, single.get(name, {}))
        if fixed := [argument for argument in NETWORK_ARGUMENTS if argument in result[name]]:
            raise TypeError(f"{fixed[0]} is one setting of all layers; give it to the network, not to {name}")
    return result


def file_name(model: str) -> str:
    """Return the pattern as a part of a file name: ``3*linear,multihead`` is ``3xlinear-multihead``."""
    return re.sub(r"\s*,\s*", "-", model.strip()).replace("*", "x").replace(" ", "")[:100]


def _parse_entry(entry: str, model: str) -> tuple[int, str]:
    """Return the count and the name of an entry."""
    where = "" if entry == model.strip() else f" in the pattern {_quoted(model)}"
    form = "write NAME or COUNT*NAME, separated by commas"
    if not entry:
        raise UserError(f"there is an empty entry in the pattern {_quoted(model)}; {form}")
    count, star, name = (part.strip() for part in entry.partition("*"))
    if not star:
        return 1, entry
    if "*" in name:
        raise UserError(f"the entry {_quoted(entry)}{where} has more than one *; {form}")
    if not name:
        raise UserError(f"the entry {_quoted(entry)}{where} has a count without a name; {form}")
    if not re.fullmatch(r"[0-9]+", count) or not int(count):
        swapped = re.fullmatch(r"[1-9][0-9]*", name)
        hint = f"did you mean {name}*{count:.50}?" if swapped and count else form
        wanted = "needs a whole number of at least 1 before the *"
        raise UserError(f"the entry {_quoted(entry)}{where} {wanted}, not {_quoted(count)}; {hint}")
    return int(count), name


def _advice(option: str) -> str:
    having = [name for name in registry.names() if option in {o.name for o in registry.entry(name).options}]
    return f"mechanisms that have it: {', '.join(having)}" if having else "attnlab models NAME lists the options"


def _quoted(text: str) -> str:
    return reprlib.repr(text) if len(text) > 100 else repr(text)


def _short(name: Any) -> str:
    return f"{name!a:.60}" if not str(name).isidentifier() else f"{name:.60}"
