"""Run the suite on a package and record the outcomes."""

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


class CatalogMismatchError(Exception):
    """The catalog or a reproduction disagrees with the outcomes; the message names it in one line."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check: ``pass``, ``fail``, ``undocumented`` or ``not applicable``.

    ``undocumented`` is a failure that does not contradict the documentation. ``reason`` explains it, or names the
    reproduction that shows a failure.
    """

    check: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """The outcomes of every layer in one version of a package, and the messages of the reproductions."""

    package: str
    version: str
    torch: str
    layers: dict[str, list[Outcome]]
    messages: dict[str, str]


NOT_RECORDED = (
    "causal_prefix_invariance",
    "nan_in_padding_is_ignored",
    "batch_invariance",
    "weights_are_per_head",
    "training_matches_eval_without_dropout",
    "eval_is_stateless",
    "eval_ignores_global_seed",
    "causal_context_length_mismatch_raises",
    "attn_bias_broadcasts",
    "integer_mask_raises_or_is_boolean",
    "meta_device_initialization",
    "reset_parameters_sets_all",
    "device_and_dtype_arguments",
    "growing_cache_matches_full_pass",
    "failed_call_keeps_cache",
    "second_derivatives_exact_or_raise",
    "higher_derivatives_with_math_backend",
    "low_precision_accuracy",
    "low_precision_error_growth",
    "submodules_are_called",
    "dynamic_quantization",
    "pruning",
    "traceable",
)
"""Checks that are newer than the recorded results."""


def run(peer: Peer) -> Result:
    """Run the suite on every layer of an installed package.

    Raises:
        CatalogMismatchError: a failure is not in the catalog, or one in the catalog does not occur.
    """
    layers = {}
    for layer in peer.layers:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):  # of the package
            report = check_attention(
                peer.target(layer), capabilities=layer.capabilities or None, fast=True, skip=NOT_RECORDED, raises=False
            )
        layers[layer.name] = outcomes(layer, report)
    shown = {outcome.reason for row in layers.values() for outcome in row if outcome.outcome == "fail"}
    messages = {name: reproduce(name) for name in sorted({*shown, *peer.beside})}
    return Result(peer.package, peer.installed or "", torch.__version__.partition("+")[0], layers, messages)


def outcomes(layer: Layer, report: Report) -> list[Outcome]:
    """The outcomes of a report; the catalog separates failures from undocumented behaviour."""
    rows = []
    for row in report.rows:
        if row.outcome in ("pass", "not applicable"):
            rows.append(Outcome(row.check, row.outcome))
        elif row.check in layer.failing:
            rows.append(Outcome(row.check, "fail", layer.failing[row.check]))
        else:
            reason = layer.undocumented.get(row.check) or COMMON.get(row.check)
            if reason is None:
                raise CatalogMismatchError(
                    f"{layer.name} fails {row.check} ({row.detail}); add the reason to peers/catalog.py"
                )
            rows.append(Outcome(row.check, "undocumented", reason))
    failed = {row.check for row in report.failed}
    for check in {*layer.failing, *layer.undocumented} - failed:
        raise CatalogMismatchError(f"{layer.name} no longer fails {check}; remove it from peers/catalog.py")
    return rows


def reproduce(name: str) -> str:
    """The message of the AssertionError that a reproduction ends with.

    Raises:
        CatalogMismatchError: it ends without an AssertionError.
    """
    file = REPRODUCTIONS / f"{name}.py"
    done = subprocess.run([sys.executable, "-W", "ignore", str(file)], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    kind, _, message = last[0].partition(": ")
    if kind != "AssertionError":
        raise CatalogMismatchError(f"{file.name} no longer fails: {last[0] or 'it ends without an error'}")
    return message


def write(result: Result) -> None:
    """Write the results from which the page is generated."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    (RESULTS / f"{result.package}.json").write_text(text + "\n", encoding="utf-8")


def read(package: str) -> Result | None:
    """The recorded results, None if there are none."""
    file = RESULTS / f"{package}.json"
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    layers = {name: [Outcome(**outcome) for outcome in outcomes] for name, outcomes in content.pop("layers").items()}
    return Result(layers=layers, **content)
