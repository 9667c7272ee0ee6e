"""The grammar of patterns of mechanisms, and the options of their mechanisms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.catalog import pattern, registry
from attnlab.utils.errors import UserError


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("linear", ["linear"]),
        ("3*linear", ["linear"] * 3),
        ("3*linear,multihead", ["linear"] * 3 + ["multihead"]),
        ("linear,2*sinks,linear", ["linear", "sinks", "sinks", "linear"]),
        (" 2 * linear , multihead ", ["linear", "linear", "multihead"]),
        ("002*linear", ["linear"] * 2),
    ],
)
def test_period(model: str, expected: list[str]) -> None:
    assert list(pattern.period(model)) == expected
    assert pattern.mechanisms(model) == tuple(dict.fromkeys(expected))


def test_the_pattern_is_repeated_and_cut() -> None:
    names = pattern.layer_names("2*linear,multihead,sinks", 7)
    assert names == ["linear", "linear", "multihead", "sinks", "linear", "linear", "multihead"]
    assert pattern.layer_names("linear", 0) == []
    with pytest.raises(ValueError, match=r"^layers \(3\) must be at least 4, the layers in one period of 3\*linear,"):
        pattern.layer_names("3*linear,multihead", 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "there is an empty entry in the pattern ''; write NAME or COUNT*NAME, separated by commas"),
        (",", "there is an empty entry in the pattern ','"),
        ("linear,,multihead", "there is an empty entry in the pattern 'linear,,multihead'"),
        ("linear,", "there is an empty entry in the pattern 'linear,'"),
        ("0*linear", "the entry '0*linear' needs a whole number of at least 1 before the *, not '0'"),
        ("-1*linear", "the entry '-1*linear' needs a whole number of at least 1 before the *, not '-1'"),
        ("1.5*linear", "the entry '1.5*linear' needs a whole number of at least 1 before the *, not '1.5'"),
        ("³*linear", "the entry '³*linear' needs a whole number of at least 1 before the *, not '³'"),
        ("*linear", "the entry '*linear' needs a whole number of at least 1 before the *, not ''"),
        ("sinks,linear*3", "the entry 'linear*3' in the pattern 'sinks,linear*3' needs a whole"),
        ("linear*3", "not 'linear'; did you mean 3*linear?"),
        ("3*", "the entry '3*' has a count without a name; write NAME or COUNT*NAME, separated by commas"),
        ("sinks,3*", "the entry '3*' in the pattern 'sinks,3*' has a count without a name"),
        ("10**9*linear", "the entry '10**9*linear' has more than one *"),
        ("2*linaer,multihead", "unknown model 'linaer'; did you mean linear?"),
        ("3linear", "unknown model '3linear'; did you mean linear?"),
        ("linear;multihead", "unknown model 'linear;multihead'"),
        ("999*linear,2*multihead", "the pattern '999*linear,2*multihead' has more than 1,000 layers, the limit"),
        (f"{'9' * 900}*linear", "has more than 1,000 layers, the limit"),
        ("linear," * 400, "the pattern of mechanisms has 2,800 characters; the limit is 1,000"),
    ],
)
def test_malformed_patterns_are_refused_in_one_line(model: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        pattern.period(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


HYBRID = "2*slidingwindow,linear"


def test_options_are_shared_or_of_one_mechanism() -> None:
    options = {"num_heads": 4, "window": 5, "linear": {"num_heads": 2, "feature_map": "relu"}}
    assert pattern.options_by_mechanism(HYBRID, options) == {
        "slidingwindow": {"num_heads": 4, "window_size": 5},  # window is an old name
        "linear": {"num_heads": 2, "feature_map": "relu"},
    }
    same = pattern.options_by_mechanism("linear", {"num_heads": 4, "linear": {"feature_map": "relu"}})
    assert same == {"linear": {"num_heads": 4, "feature_map": "relu"}}
    assert pattern.options_by_mechanism("2*linear,linear", {"num_heads": 4}) == {"linear": {"num_heads": 4}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, "no mechanism of 2*slidingwindow,linear has an option colour; attnlab models NAME lists the"),
        ({"kv_latent_dim": 1}, "has an option kv_latent_dim; mechanisms that have it: latent"),
        ({"sinks": {}}, "there are options for sinks, but 2*slidingwindow,linear has slidingwindow and linear"),
        ({"linear": {"window_size": 3}}, "linear has no option window_size; it has"),
        ({"causal": True}, "causal is one setting of all layers; give it to the network, not to slidingwindow"),
        ({"linear": {"dropout": 0.1}}, "dropout is one setting of all layers; give it to the network, not to linear"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        pattern.options_by_mechanism(HYBRID, options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"window": 3, "window_size": 3}, {"slidingwindow": {"window": 3, "window_size": 3}}]
)
def test_an_old_and_a_new_name_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="window is the old name of window_size"):
        pattern.options_by_mechanism(HYBRID, options)


def test_file_names_hold_no_special_characters() -> None:
    assert pattern.file_name(" 3*linear , multihead") == "3xlinear-multihead"
    assert len(pattern.file_name("linear," * 100 + "linear")) <= 100


NAMES = st.sampled_from(["linear", "multihead", "sinks"])
PATTERNS = st.lists(st.tuples(st.integers(1, 3), NAMES), min_size=1, max_size=4).map(
    lambda entries: ",".join(f"{count}*{name}" if count > 1 else name for count, name in entries)
)


@settings(max_examples=40)
@given(st.lists(PATTERNS, min_size=1, max_size=4, unique=True), st.data())
def test_every_list_of_enclosed_patterns_is_read_as_written(models: list[str], data: st.DataObject) -> None:
    marks = [data.draw(st.sampled_from([("(", ")"), ('"', '"'), ("'", "'")])) for _ in models]
    enclosed = [left + model + right for model, (left, right) in zip(models, marks, strict=True)]
    assert list(pattern.expand(",".join(enclosed)).values()) == models
    assert pattern.expand(enclosed) == pattern.expand(",".join(enclosed))


@given(st.lists(PATTERNS, min_size=1, max_size=4, unique=True))
def test_a_list_without_parentheses_is_read_in_its_only_sense_or_refused(models: list[str]) -> None:
    word = ",".join(models)
    parts = word.split(",")
    if len(parts) == 1 or (len(parts) == 2 and "*" in word):
        assert list(pattern.expand(word)) == [word]
    elif "*" in word or len(set(parts)) < len(parts):
        with pytest.raises(UserError, match=r"separate models, layers|is in the list of models twice"):
            pattern.expand(word)
    else:
        assert list(pattern.expand(word)) == parts


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["multihead", "linear", "2*linear,sinks"], ["multihead", "linear", "2*linear,sinks"]),
        ("hybrid = 2 * linear , sinks", {"hybrid": "2*linear,sinks"}),
        ("hybrid=(linear,sinks),sinks", {"hybrid": "linear,sinks", "sinks": "sinks"}),
        ("multihead,linear", ["multihead", "linear"]),
        ("2*linear,(linear,sinks)", ["2*linear", "linear,sinks"]),
        ("sinks,family:retention", ["sinks", "retention", "gatedlinear"]),
        (["gatedlinear", "family:retention"], ["gatedlinear", "retention"]),
        ("all", registry.names()),
    ],
)
def test_a_list_of_models(words: str | list[str], models: list[str] | dict[str, str]) -> None:
    expected = models if isinstance(models, dict) else {model: model for model in models}
    assert list(pattern.expand(words).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the list of models is empty"),
        ("", "there is an empty entry in the list of models ''"),
        ("linear,", "there is an empty entry in the list of models 'linear,'"),
        ("linear,(sinks", r"there is an unpaired \( in the list of models"),
        ("multihead,linear,3*linear,sinks", "the commas in 'multihead,linear,3.linear,sinks' separate models, layers"),
        ("a=linear,b=3*linear", "separate models, layers of a pattern, or both"),
        ("linear,linear", "'linear' is in the list of models twice"),
        ("sinks=linear", "the label sinks is the name of a mechanism"),
        ("x=family:linear", "family:linear stands for 10 models, which one label"),
        ("family:linaer", "unknown model 'linaer'; did you mean linear"),
        ("line ar", "unknown model 'line ar'; did you mean linear"),
        ("()", "there is an empty entry in the pattern ''"),
    ],
)
def test_a_malformed_list_of_models_is_refused(words: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pattern.expand(words)
