"""Positional encodings from text, and the errors for text that is not valid."""

from __future__ import annotations

import inspect
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlab.catalog import registry
from attnlab.models.multihead import MultiAttention
from attnlab.positions import ALiBi, Positions, Rotary, T5Bias, parse_positions


def made(positions: str | Positions, causal: bool = False) -> Positions:
    return parse_positions(positions, num_heads=3, head_dim=8, causal=causal)


@pytest.mark.parametrize(
    ("text", "kind", "settings"),
    [
        ("none", Positions, ""),
        ("alibi", ALiBi, ""),
        ("rotary", Rotary, "width=8 of 8, base=10000, layout='half'"),
        ("rotary(base=5e5, rotary_fraction=0.5)", Rotary, "width=4 of 8, base=500000, layout='half'"),
        (
            "rotary(layout='interleaved', scaling=yarn, factor=4, original_max_length=2_048)",
            Rotary,
            "width=8 of 8, base=10000, layout='interleaved', scaling=Scaling(kind='yarn', factor=4, "
            "original_max_length=2048)",
        ),
        (" t5() ", T5Bias, "causal=True, num_buckets=32, max_distance=128"),
        ("t5(num_buckets=16, max_distance=64)", T5Bias, "causal=True, num_buckets=16, max_distance=64"),
    ],
)
def test_text_is_parsed(text: str, kind: type[Positions], settings: str) -> None:
    positions = made(text, causal=True)
    assert type(positions) is kind
    assert positions.extra_repr() == settings


POSITIONED = [name for name in registry.names() if "positions" in inspect.signature(registry.load(name)).parameters]


@pytest.mark.parametrize("name", POSITIONED)
def test_signature_docstring_and_constructor_agree(name: str) -> None:
    mechanism = registry.load(name)
    alternatives = get_args(get_type_hints(mechanism.__init__)["positions"])
    (named,) = ({*get_args(hint)} for hint in alternatives if get_origin(hint) is Literal)
    entry = re.search(r"\n +positions: (.*?)(?=\n +\w+: |\n\n|\n *$)", inspect.getdoc(mechanism) or "", re.DOTALL)
    assert entry is not None
    documented = {*re.findall(r"\b(none|rotary|alibi|t5)\b", entry[1])}
    accepted = set()
    for scheme in ("none", "rotary", "alibi", "t5"):
        try:
            mechanism(48, 4, positions=scheme)
            accepted.add(scheme)
        except ValueError as refused:
            assert "positions" in str(refused)  # noqa: PT017
    assert named == documented == accepted


def test_instances_are_used_unchanged() -> None:
    for positions in (Rotary(8, base=500), ALiBi(3), T5Bias(3), Positions()):
        layer = MultiAttention(24, 3, positions=positions)
        assert layer.positions is positions
        assert layer.supports("equivariant") == (positions.name == "none")
    assert made(T5Bias(3, causal=True), causal=True).name == "t5"


USAGE = r"positions is none, rotary, alibi or t5, or one of these with settings, such as rotary\(base=500000\); not "


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rope", "rotary"),
        ("rope(base=500)", "rotary(base=500)"),
        ("rotary(share=0.5)", "rotary(rotary_fraction=0.5)"),
        ("rotary(scaling=yarn, factor=4, original=64)", "rotary(scaling=yarn, factor=4, original_max_length=64)"),
        ("t5(buckets=16, longest=64)", "t5(num_buckets=16, max_distance=64)"),
    ],
)
def test_aliases(old: str, new: str) -> None:
    assert repr(made(old)) == repr(made(new))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("rotery", ValueError, USAGE + "'rotery'; did you mean rotary"),
        ("", ValueError, USAGE + "''"),
        ("rotary(", ValueError, USAGE + r"'rotary\('"),
        ("rotary(base=3", ValueError, USAGE),
        ("rotary; import os", ValueError, USAGE),
        ("a.rotary", ValueError, USAGE),
        ("rotary(base=2)(rotary_fraction=1)", ValueError, USAGE),
        ("[rotary]", ValueError, USAGE),
        ("rotary\0", ValueError, USAGE),
        ("(" * 10_000, ValueError, USAGE),
        ("rotary(500)", ValueError, r"settings are NAME=VALUE, such as rotary\(base=500000\); not 'rotary\(500\)'"),
        ("rotary(**base)", ValueError, "settings are NAME=VALUE"),
        ("rotary(base=2, base=3)", ValueError, r"rotary\(...\) sets base twice"),
        ("rotary(bse=2)", ValueError, "rotary has no setting bse; did you mean base?"),
        (
            "rotary(zzz=2)",
            ValueError,
            "no setting zzz; it has base, rotary_fraction, layout, scaling, factor, ",
        ),
        ("alibi(slope=2)", ValueError, "alibi has no setting slope; it has no settings"),
        ("rotary(base=1+1)", ValueError, r"base takes a number or a word, not '1 \+ 1'"),
        ("rotary(base=open('x'))", ValueError, "base takes a number or a word, not "),
        ("rotary(base=many)", TypeError, "base must be a number, not 'many'"),
        ("rotary(base=1e999)", ValueError, "not inf"),
        ("rotary(layout=[1])", ValueError, r"layout must be half or interleaved, not \[1\]"),
        ("rotary(factor=2)", ValueError, r"factor in rotary\(...\) need a scaling; add scaling=linear"),
        (
            "rotary(factor=2, original_max_length=3)",
            ValueError,
            r"factor and original_max_length in rotary",
        ),
        ("rotary(scaling=ntk)", ValueError, r"scaling=ntk in rotary\(...\) needs factor="),
        ("rotary(scaling=yarn, factor=2)", ValueError, "yarn needs original_max_length="),
        ("rotary(scaling=none, factor=2)", ValueError, "scaling must be linear, ntk or yarn, not 'none'"),
        ("t5(num_buckets=2.5)", TypeError, "num_buckets must be an integer, not 2.5"),
        (None, TypeError, "positions must be a str or an attnlab.positions.Positions, not NoneType"),
        (Rotary(10), ValueError, "for heads of width 10, not 8"),
        (ALiBi(2), ValueError, "these ALiBi slopes are for 2 heads, not 3"),
        (T5Bias(4), ValueError, "this T5 bias is for 4 heads, not 3"),
        (T5Bias(3, causal=True), ValueError, "this T5 bias has no ranges for later keys"),
    ],
)
def test_invalid_arguments_are_refused(text: str | Positions, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        made(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text() | st.from_regex(r"(rotary|t5|alibi)\([a-z]{0,6}=[^\n]{0,9}\)", fullmatch=True))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        result = made(text)
    except (ValueError, TypeError) as error:
        result = str(error)
    assert isinstance(result, Positions) or "\n" not in result
