"""docs/peers.md: made of the results and the catalog alone, so that it cannot drift from them."""

from __future__ import annotations

import ast
from pathlib import Path

from peers.catalog import PEERS
from peers.peer import Peer
from peers.results import REPRODUCTIONS, Outcome, Result, read

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "peers.md"
SIGNS = {"kept": "✓", "broken": "**✗**", "unclaimed": "○", "not asked": ""}

OPENING = """\
# The same suite on others

[The conformance suite](checks.md) takes any attention layer. Here it is run on the layers of others, through small
adapters (`peers/adapters/`) that ask each layer as its own documentation says. This page is made by a command; do not
edit it:

```sh
python -m peers page
```

`python -m peers` runs everything again that is installed, and `python -m peers attnhut` one package. Each row has a
command of its own beside it.

How to read it:

- **✓ kept**: the promise was measured, and holds.
- **✗ broken**: the layer does otherwise than its documentation or the name of its argument says. Each has a
  reproduction of at most ten lines that uses the package alone. It ends with an `AssertionError` as long as it is so.
- **○ not claimed**: measured, and not kept; but the package never said that it would be, or documents it otherwise. The
  reason stands below the table.
- empty: not claimed either, and there is no way to ask: the layer has no such option.

The command beside a row prints what was measured. It does not know what is claimed: ○ and ✗ are both `fail` there.

A ✗ is a finding about one version of one layer, at small sizes on a CPU. It is no verdict on a package: several are
meant for study, most have layers that keep all that they claim, and all of them were there before us. Where the suite
was unfair to one of them, the suite was changed. The promises that compile are left out, and so are those that only a
mechanism of attnlab can be asked (its cache, its errors).
"""


def write() -> Path:
    """Make the page from the results there are."""
    PAGE.write_text(page({peer.package: found for peer in PEERS if (found := read(peer.package))}), encoding="utf-8")
    return PAGE


def page(found: dict[str, Result]) -> str:
    """The whole page."""
    lines = [OPENING, "## In short", "", "| package | version | layers | kept | broken | not claimed |"]
    lines += ["|---|---|---|---|---|---|"]
    there = [(peer, found[peer.package]) for peer in PEERS if peer.package in found]
    for peer, result in there:
        counted = [outcome.outcome for layer in result.layers.values() for outcome in layer]
        counts = [counted.count("kept"), counted.count("broken"), counted.count("unclaimed")]
        cells = [f"[{peer.package}](#{peer.package})", result.version, len(result.layers), *counts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "The numbers are promises, added over the layers. What cannot be asked is not counted.", ""]
    for peer, result in there:
        lines += section(peer, result)
    return "\n".join(lines).rstrip() + "\n"


def section(peer: Peer, result: Result) -> list[str]:
    """One package: how it is asked, its matrix, what is broken and what is not claimed."""
    lines = [f"## {peer.package}", "", f"Version {result.version}, with PyTorch {result.torch}. "]
    lines[-1] += f"[Its documentation]({peer.home}). {peer.asked}"
    lines += ["", "| | layer | the command that repeats it |", "|---|---|---|"]
    for number, layer in enumerate(peer.layers, 1):
        lines.append(f"| {number} | `{layer.name}` | `{peer.command(layer)}` |")
    lines += ["", *matrix([result.layers[layer.name] for layer in peer.layers]), ""]
    lines += [*broken(peer, result), *unclaimed(result)]
    return [*lines, ""]


def matrix(layers: list[list[Outcome]]) -> list[str]:
    """A row a promise that any of the layers can be asked."""
    lines = [f"| promise | {' | '.join(str(number + 1) for number in range(len(layers)))} |"]
    lines.append(f"|---|{':-:|' * len(layers)}")
    asked = [row for row in zip(*layers, strict=True) if any(outcome.outcome != "not asked" for outcome in row)]
    return lines + [f"| {row[0].promise} | {' | '.join(SIGNS[outcome.outcome] for outcome in row)} |" for row in asked]


def broken(peer: Peer, result: Result) -> list[str]:
    """A line a reproduction: what it shows, what it says, and the promises that it explains."""
    explained: dict[str, list[str]] = {}
    for layer in result.layers.values():
        for outcome in layer:
            if outcome.outcome == "broken" and outcome.promise not in explained.setdefault(outcome.why, []):
                explained[outcome.why].append(outcome.promise)
    lines = []
    for name, promises in explained.items():
        known = f" {peer.known[name]}" if name in peer.known else ""
        lines.append(f"- ✗ {shown(name, result)}{known} Explains: {', '.join(promises)}.")
    for name, note in peer.beside.items():
        lines.append(f"- ✗ Beside the suite: {shown(name, result)} {note}")
    return lines


def shown(name: str, result: Result) -> str:
    """What a reproduction is about, with a link to it and the words that it ends with."""
    file = REPRODUCTIONS / f"{name}.py"
    about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f"{about} [{file.name}](../peers/reproductions/{file.name}): *{result.said[name]}*."


def unclaimed(result: Result) -> list[str]:
    """A line a reason, with the promises that it excuses."""
    reasons: dict[str, list[str]] = {}
    for layer in result.layers.values():
        for outcome in layer:
            if outcome.outcome == "unclaimed" and outcome.promise not in reasons.setdefault(outcome.why, []):
                reasons[outcome.why].append(outcome.promise)
    return [f"- ○ {', '.join(promises)}: {why}." for why, promises in reasons.items()]
