"""Run the suite on a peer, and keep what it found."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from attnlab.checks import Report, check_attention
from peers.peer import COMMON, Layer, Peer

HERE = Path(__file__).parent
RESULTS, REPRODUCTIONS = HERE / "results", HERE / "reproductions"


class OutOfStep(Exception):  # noqa: N818  reads as what it says
    """The catalog or a reproduction does not agree with what was found; the message is a line that says where."""


@dataclass(frozen=True)
class Outcome:
    """One promise of one layer; ``why`` says why it is not claimed, or which reproduction shows that it is broken.

    A promise that is not claimed was either asked and not kept (``unclaimed``), or cannot be asked (``not asked``).
    """

    promise: str
    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Result:
    """What was found in one version of a package: the outcomes of each layer, and what the reproductions say."""

    package: str
    version: str
    torch: str
    layers: dict[str, list[Outcome]]
    said: dict[str, str]


NOT_YET = (
    "a causal prefix is computed alone",
    "NaN in padding reaches nothing",
    "items of a large batch are computed alone",
    "weights are per head",
    "training without dropout = eval",
    "eval calls change no later output",
    "eval does not depend on the global seed",
    "causal with a context of another length raises",
    "a bias broadcasts",
    "an integer mask raises or is read as Boolean",
    "leaves the meta device",
    "reset_parameters sets every parameter",
    "constructors take device= and dtype=",
    "a growing cache = the full pass",
    "a failed call leaves the cache unchanged",
    "second derivatives are right or raise",
    "higher derivatives under sdpa_kernel(MATH)",
    "low precision matches float64",
    "low-precision error does not grow with length",
    "submodules are called",
    "dynamic quantization runs",
    "pruned layers train",
    "traceable",
)
"""Checks that are newer than the recorded results; to be asked when all packages are looked at again."""


def run(peer: Peer) -> Result:
    """Hold every layer of a peer that is installed to its promises.

    Raises:
        OutOfStep: for a failure that the catalog does not know, or one that it knows and that is not there.
    """
    layers = {}
    for layer in peer.layers:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # theirs to mend
            target = peer.target(layer)
            report = check_attention(target, claims=layer.claims or None, fast=True, skip=NOT_YET, raises=False)
        layers[layer.name] = outcomes(layer, report)
    shown = {outcome.why for found in layers.values() for outcome in found if outcome.outcome == "broken"}
    said = {name: reproduce(name) for name in sorted({*shown, *peer.beside})}
    return Result(peer.package, peer.installed or "", torch.__version__.partition("+")[0], layers, said)


def outcomes(layer: Layer, report: Report) -> list[Outcome]:
    """What a report means for a layer, by what the catalog knows of it."""
    found = []
    for row in report.rows:
        if row.outcome == "pass":
            found.append(Outcome(row.promise, "kept"))
        elif row.outcome == "not claimed":
            found.append(Outcome(row.promise, "not asked", row.detail))
        elif row.promise in layer.broken:
            found.append(Outcome(row.promise, "broken", layer.broken[row.promise]))
        else:
            why = layer.unclaimed.get(row.promise) or COMMON.get(row.promise)
            if why is None:
                raise OutOfStep(f"{layer.name} fails in {row.promise!r} ({row.detail}); say in peers/catalog.py why")
            found.append(Outcome(row.promise, "unclaimed", why))
    failed = {row.promise for row in report.failed}
    for promise in {*layer.broken, *layer.unclaimed} - failed:
        raise OutOfStep(f"{layer.name} does not fail in {promise!r} any longer; take it out of peers/catalog.py")
    return found


def reproduce(name: str) -> str:
    """What a reproduction says in the AssertionError that it ends with.

    Raises:
        OutOfStep: where it ends otherwise.
    """
    file = REPRODUCTIONS / f"{name}.py"
    done = subprocess.run([sys.executable, "-W", "ignore", str(file)], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    kind, _, said = last[0].partition(": ")
    if kind != "AssertionError":
        raise OutOfStep(f"{file.name} shows nothing any longer: {last[0] or 'it ends without an error'}")
    return said


def keep(result: Result) -> None:
    """Write it where the page is made from."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    (RESULTS / f"{result.package}.json").write_text(text + "\n", encoding="utf-8")


def read(package: str) -> Result | None:
    """What was found last, None where nothing was."""
    file = RESULTS / f"{package}.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    layers = {name: [Outcome(**outcome) for outcome in outcomes] for name, outcomes in found.pop("layers").items()}
    return Result(layers=layers, **found)
