"""Patterns of mechanisms over the layers of a network, such as ``3*linear,multihead``; torch is not imported.

Grammar: entries ``NAME`` or ``COUNT*NAME``, separated by commas. The entries describe one period, which is repeated
over the layers; where their number is no multiple of the period, the last repetition is cut.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
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


ALL, FAMILY = "all", "family:"
"""Words in a list of models: every mechanism, and a mechanism with its descendants."""

_LABEL = re.compile(r"\s*([A-Za-z0-9][\w.+-]*)\s*=\s*(.*)", re.DOTALL)
_PART = re.compile(r"""(?:"[^"]*"|'[^']*'|\([^()]*\)|[^,"'()])+""")
_ENCLOSED = re.compile(r"""\s*(?:"(.*)"|'(.*)'|\((.*)\))\s*""", re.DOTALL)


def expand(words: str | Iterable[str]) -> dict[str, str]:
    """Return the pattern of each model in a list of models, by its label.

    Commas and spaces between words separate models. A pattern that has commas of its own is written in parentheses or
    quotes, as in ``multihead,(3*linear,multihead)``; ``COUNT*NAME,NAME`` as a whole word is a pattern without them.
    ``LABEL=MODEL`` names a model, whose label is otherwise the pattern. ``all`` stands for every mechanism,
    ``family:NAME`` for a mechanism and its descendants; both leave out models that were listed before.

    Args:
        words: the words of a command line, or one of them.

    Raises:
        UserError: for an empty list, a list whose commas can be read in two ways, unbalanced parentheses or quotes, a
            label that is given twice or names another mechanism, and what `period` raises.
    """
    models: dict[str, str] = {}
    for word in [words] if isinstance(words, str) else words:
        for part in _parts(word):
            label, text = _label(part)
            if text == ALL or text.startswith(FAMILY):
                group = registry.names() if text == ALL else registry.family(text.removeprefix(FAMILY).strip())
                if label:
                    raise UserError(f"{text} stands for {len(group)} models, which one label ({label}) cannot name")
                models |= {name: name for name in group}
                continue
            enclosed = _ENCLOSED.fullmatch(text)
            model = "".join(filter(None, enclosed.groups())) if enclosed else text
            model = re.sub(r"\s*([,*])\s*", r"\1", model.strip())
            period(model)
            label = label or model
            if label in models:
                raise UserError(f"{_quoted(label)} is in the list of models twice; leave one out or write LABEL=MODEL")
            if label != model and label in (*registry.names(), ALL):
                raise UserError(f"the label {label} is the name of a mechanism; choose another for {_quoted(model)}")
            models[label] = model
    if not models:
        raise UserError(f"the list of models is empty; write names, patterns or {ALL}")
    return models


def _parts(word: str) -> list[str]:
    """The models in a word: the parts between commas outside of parentheses and quotes."""
    if len(word) > 10 * MAX_CHARACTERS:
        raise UserError(f"the list of models has {len(word):,} characters; the limit is {10 * MAX_CHARACTERS:,}")
    parts, end = [], 0
    for match in _PART.finditer(word):
        if match.start() != end:
            break
        parts.append(match[0])
        end = match.end() + 1  # the comma
    if end <= len(word):
        problem = "an empty entry" if word[end : end + 1] in ("", ",") else f"an unpaired {word[end]}"
        raise UserError(f"there is {problem} in the list of models {_quoted(word)}; write NAME or (PATTERN)")
    labels, texts = zip(*map(_label, parts), strict=True)
    is_open = [not _ENCLOSED.fullmatch(text) for text in texts]
    if len(parts) == 1 or not any("*" in text for text, free in zip(texts, is_open, strict=True) if free):
        return parts
    if len(parts) == 2 and not all(is_open):
        return parts
    if len(parts) == 2 and not labels[1]:
        return [f"{labels[0]}=({','.join(texts)})" if labels[0] else f"({','.join(texts)})"]
    raise UserError(
        f"the commas in {_quoted(word)} separate models, layers of a pattern, or both; write each pattern in "
        "parentheses and the list in quotes: 'multihead,(3*linear,multihead)'"
    )


def _label(part: str) -> tuple[str, str]:
    """The label of a model in a list, empty if it has none, and the model."""
    match = _LABEL.fullmatch(part)
    return (match[1], match[2].strip()) if match else ("", part.strip())


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
