"""docs/peers.md, made of what was found."""

from __future__ import annotations

import ast
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnlab.checks.report import Report
from peers.adapters import PEERS, Peer

ROOT = Path(__file__).parent.parent
PAGE, FOUND, SHOWN = ROOT / "docs" / "peers.md", ROOT / "peers" / "found.json", ROOT / "peers" / "reproductions"

COMMON = {
    "causal hears no future": "future",
    "causal hears no future under a mask": "future, masked",
    "masked keys are never heard": "masked keys",
    "padding is never heard": "padding",
    "padding is as if absent": "absent",
    "other batch items are never heard": "other items",
    "empty rows give finite gradients": "empty rows",
    "dropout is off in eval": "eval",
    "dropout is right on average": "dropout",
}
"""What anybody takes for granted of a layer that documents a mask, ``causal`` or dropout, and the head of its column.

That an empty row gives exactly zero is a convention of ours, and not asked of others.
"""

MARKS = {"pass": "✓", "fail": "✗", "not claimed": "–"}

HEAD = """# The same suite on others

`attnlab check` holds any layer to what it promises, so here it is held to layers by others: each made and asked as
its own documentation says, and only for what it documents. ✓ kept, ✗ broken, – not claimed.

The columns: causal hears no **future**; nor **under a mask**; **masked keys** and **padding** are never heard; a
padded sequence gives what it gives alone (**absent**); **other items** of the batch are never heard; rows that may
look at nothing leave all gradients finite (**empty rows**); dropout is off in **eval**, and right on average in
training (**dropout**). That such a row gives exactly zero is a convention of ours, and not asked of others.
"""

MIDDLE = """
Most of these layers are right in what they are used for. What is broken is broken at an edge. One edge is not in the
table: behind padding on the left, a causal row may look at nothing. Filled with the least number instead of minus
infinity it reads the average of everything, the future and the padding too (Keras, Llama's layer, local-attention and
memory-efficient-attention-pytorch, below). Nobody reads that row as a rule; a loss that does is taught by what it
should not see.

## How each is asked

"""

TAIL = """
## Each failure, by the peer alone

Ten lines at most, without anything of ours; each prints `True` where the failure is there.
"""


def found_of(peer: Peer, report: Report) -> dict[str, Any]:
    """What is kept of a report."""
    return {"version": version(peer.package), "outcomes": {row.promise: row.outcome for row in report.rows}}


def write() -> str:
    """The page."""
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    lines = [f"| peer | {' | '.join(COMMON.values())} |", f"| --- |{' --- |' * len(COMMON)}"]
    asked = []
    for name, row in found.items():
        peer = PEERS[name]
        outcomes = row["outcomes"]
        marks = " | ".join(MARKS[outcomes.get(promise, "not claimed")] for promise in COMMON)
        lines.append(f"| {peer.layer} (`{name}`) | {marks} |")
        asked.append(f"- **{peer.layer}**, {peer.package} {row['version']}: {peer.asked}. `python -m peers {name}`")
    parts = [HEAD, "\n".join(lines), MIDDLE + "\n".join(asked), TAIL]
    for file in sorted(SHOWN.glob("*.py")):
        code = file.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(code))
        body = code.partition('"""\n')[2].strip()
        parts.append(f"{said}\n\n```text\n{body}\n```\n\n`python peers/reproductions/{file.name}`\n")
    again = "All of it again: `pip install -c constraints.txt -e '.[peers]'`, then `python -m peers`.\n"
    return "\n".join([*parts, again])
