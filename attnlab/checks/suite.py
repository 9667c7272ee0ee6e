"""Run the conformance suite on a layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import CAPABILITIES, CheckFailed, NotApplicable
from attnlab.checks.layer_under_test import SEED, Call, LayerUnderTest, first_line
from attnlab.checks.registry import Check, all_checks
from attnlab.checks.renamed import OLD_NAMES
from attnlab.checks.report import Outcome, Report, Row
from attnlab.utils.errors import UserError, nearest


def check_attention(
    target: nn.Module | Callable[..., nn.Module],
    *,
    embed_dim: int | None = None,
    call: Call | None = None,
    weights: Call | None = None,
    reference: Callable[..., Tensor] | None = None,
    capabilities: Collection[str] | None = None,
    device: torch.device | str = "cpu",
    fast: bool = False,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    raises: bool = True,
    progress: Callable[[str], None] | None = None,
    claims: Collection[str] | None = None,
) -> Report:
    """Run every applicable check on an attention layer.

    The layer may be any module that maps (B, N, D) to the same shape. The capabilities of an `attnlab.Attention` are
    those of its card. Those of another layer are read from its signatures: ``causal`` in the constructor, ``mask`` in
    ``forward``, a method ``attention_weights`` (B, H, N, N). Its masks are Boolean (B, N, N); True means *attend*.

    Args:
        target: a class or function that makes a fresh layer, or a layer, of which copies are checked. A class can be
            built with ``causal`` and ``dropout``; a layer is checked as it is.
        embed_dim: D; read from the constructor or the layer by default.
        call: ``(layer, x, mask) -> out``, for a layer with another calling convention.
        weights: ``(layer, x, mask) -> (B, H, N, N)``, for a layer that returns its attention weights another way.
        reference: ``(layer, x, mask=, attn_bias=, context=) -> out``, a reference implementation to compare with; the
            mask is Boolean (B, H, N, M) and includes ``causal``. By default ``reference.py`` beside the class, if there
            is one.
        capabilities: overrides the inferred capabilities (see `attnlab.checks.capabilities.CAPABILITIES`).
        device: where to run.
        fast: skip the slow checks, which compile, export or measure the peak memory of long sequences.
        only: the names of the checks to run; all by default.
        skip: the names of checks to skip.
        raises: raise if a check fails; if False, only return the report.
        progress: called with the name of each check before it runs.
        claims: the former name of ``capabilities``; deprecated.

    Returns:
        A `Report` with one row per check: the outcome and the measured value.

    Raises:
        AssertionError: a check failed; the message lists every failure with its value and where it was measured.
        UnknownNameError: a capability does not exist.
        UserError: the target is no layer and makes none, or it cannot be built, called with x alone, or moved to the
            device, or its width is unknown; a check does not exist.
    """
    __tracebackhide__ = True  # pytest shows the message alone
    if claims is not None:
        warnings.warn("claims= is deprecated; use capabilities=", DeprecationWarning, stacklevel=2)
        capabilities = claims
    known = all_checks()
    only, skip = ([_current_name(name, known) for name in names] for names in (only, skip))
    chosen = [
        check
        for name, check in known.items()
        if (not only or name in only) and name not in skip and not (fast and check.slow)
    ]
    rows = []
    # The state of torch's generators is restored afterwards.
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        case = LayerUnderTest(
            target,
            embed_dim=embed_dim,
            call=call,
            weights=weights,
            reference=reference,
            capabilities=capabilities,
            device=device,
        )
        for check in chosen:
            if progress:
                progress(check.name)
            rows.append(run_check(check, case))
    report = Report(case.name, tuple(rows), left_out=len(known) - len(rows))
    if raises:
        report.raise_for_failures()
    return report


def run_check(check: Check, case: LayerUnderTest) -> Row:
    """Run one check. An exception that the layer raises is a failure of the layer."""
    for capability in check.needs:
        if capability not in case.capabilities:
            return Row(check.name, "not applicable", detail=CAPABILITIES[capability])
    try:
        torch.manual_seed(SEED)
        result = check.measure(case)
    except NotApplicable as reason:
        return Row(check.name, "not applicable", detail=str(reason))
    except CheckFailed as error:
        return Row(check.name, "fail", detail=str(error))
    except Exception as error:
        return Row(check.name, "fail", detail=first_line(error))
    outcome: Outcome = "pass" if result.passed else "fail"
    return Row(check.name, outcome, float(result.value), float(result.limit), result.detail)


def _current_name(name: str, known: Collection[str]) -> str:
    """The name of a check; an old name is accepted with a warning."""
    if name in known:
        return name
    if name in OLD_NAMES:
        warnings.warn(f"the check {name!r} is now {OLD_NAMES[name]!r}", DeprecationWarning, stacklevel=3)
        return OLD_NAMES[name]
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else "attnlab check lists all checks"
    raise UserError(f"unknown check {name!r}; {hint}")
