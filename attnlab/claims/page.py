"""The generated parts of the documentation about claims: docs/claims.md, and the section of each lesson."""

from __future__ import annotations

from collections.abc import Iterable

from attnlab.claims import claim as claims
from attnlab.claims import record
from attnlab.claims.claim import Claim
from attnlab.claims.record import Record
from attnlab.comparison.analysis import number
from attnlab.training.settings import flag_name
from attnlab.utils.escape import shell_word
from attnlab.utils.markdown import table

NOT_RUN = "not run yet"


def page() -> str:
    """The table of all claims, and a section for each."""
    loaded = [claims.load(name) for name in claims.names()]
    results = {each.name: record.read(each) for each in loaded}
    rows = [(f"[{each.claim}](#{each.name})", each.paper, verdict(results[each.name])) for each in loaded]
    sections = [section(each, results[each.name]) for each in loaded]
    return "\n\n".join([table(("claim", "paper", "verdict"), rows), *sections])


def verdict(result: Record | None) -> str:
    """The verdict of a result as text."""
    return NOT_RUN if result is None else f"**{result.verdict}**"


def section(claim: Claim, result: Record | None) -> str:
    """The section about one claim."""
    parts = [f"## {claim.name}", claim.claim, f"Source: {claim.paper}."]
    if result is None:
        parts.append(f"Verdict: {NOT_RUN} (`attnlab claims run {claim.name} --record`).")
    else:
        parts += [f"Verdict: {verdict(result)} ({len(result.seeds)} seeds).", criteria(result), arms(claim, result)]
    parts.append(f"Not shown: {claim.not_shown}.")
    parts.append(f"Settings of all arms: {_flags(claim.settings)}. To run it again: `attnlab claims run {claim.name}`.")
    return "\n\n".join(parts)


def criteria(result: Record) -> str:
    """The table of the criteria."""
    rows = [(each.text, each.estimate, each.outcome) for each in result.criteria]
    return table(("pre-registered criterion", "estimate (95 % interval)", ""), rows)


def arms(claim: Claim, result: Record) -> str:
    """The table of the arms: their settings, and the mean at each point."""
    points = list(dict.fromkeys(arm.point for arm in result.arms))
    rows = []
    for name in dict.fromkeys(arm.arm for arm in result.arms):
        cells = []
        for point in points:
            found = [arm for arm in result.arms if (arm.arm, arm.point) == (name, point)]
            cells.append(_estimate(found[0]) if found else "–")
        rows.append((name, _flags(claim.arms[name]), *cells))
    heads = ["mean ± 95 % interval"] if points == [None] else [f"{_sweep(claim)} {point}" for point in points]
    return table(("arm", "its settings", *heads), rows)


def lesson(name: str) -> str:
    """The claims that a lesson shows; empty if there is none."""
    shown = [each for each in map(claims.load, claims.names()) if name in each.lessons]
    return lesson_table((each, record.read(each)) for each in shown)


def lesson_table(pairs: Iterable[tuple[Claim, Record | None]]) -> str:
    """A table of claims with links to their experiments."""
    rows = []
    for claim, result in pairs:
        estimates = "" if result is None else "; ".join(f"{each.text}: {_estimate(each)}" for each in result.criteria)
        link = f"[{claim.claim}](../../docs/claims.md#{claim.name})"
        rows.append((link, claim.paper, estimates, verdict(result)))
    return table(("claim", "paper", "ours (95 % interval)", "verdict"), rows) if rows else ""


def _estimate(each: record.Judged | record.Arm) -> str:
    """``0.912 ± 0.016``."""
    half = (each.high - each.low) / 2
    return f"{number(each.mean, half)} ± {number(half, half, each.mean)}"


def _sweep(claim: Claim) -> str:
    assert claim.sweep is not None
    return "heads removed" if claim.measure == "pruned" else claim.sweep.setting


def _flags(settings: dict[str, object]) -> str:
    """Settings as flags of the command line."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f"--{flag_name(name, negated=not value)}")
        else:
            words.append(f"--{name} {shell_word(str(value))}")
    return f"`{' '.join(words)}`" if words else "–"
