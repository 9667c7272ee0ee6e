"""`check_attention` on layers of attnlab and of other libraries, on classes, functions and instances."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import third_party
import torch
from faulty.recurrence import MovingAverage
from mechanisms import trace_only
from plain import Plain
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnlab
from attnlab.checks import (
    Check,
    CheckFailed,
    LayerUnderTest,
    Measurement,
    NotApplicable,
    Report,
    Row,
    all_checks,
    check,
    check_attention,
)
from attnlab.checks.capabilities import CAPABILITIES
from attnlab.checks.registry import largest
from attnlab.checks.renamed import OLD_NAMES
from attnlab.checks.suite import run_check
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.utils.errors import UnknownNameError, UserError


def outcomes(report: Report, outcome: str) -> set[str]:
    return {row.check for row in report.rows if row.outcome == outcome}


def one(target: Any, check: str, **options: Any) -> Row:
    """The row of one check."""
    return check_attention(target, only=[check], raises=False, **options).rows[0]


@pytest.fixture(scope="module")
def tutorial() -> Report:
    return check_attention(third_party.Tutorial, fast=True, raises=False)


# Third-party layers


@pytest.mark.slow
def test_third_party_layer_has_the_capabilities_of_its_signatures() -> None:
    report = check_attention(third_party.Correct, fast=True)
    assert {"no_future_leakage_with_mask", "weights_sum_to_one", "dropout_is_unbiased"} <= outcomes(report, "pass")
    assert report["unsupported_arguments_raise"].detail == "it is no attnlab.Attention"


@pytest.mark.slow
def test_failures_are_listed_with_value_and_location(tutorial: Report) -> None:
    with pytest.raises(AssertionError) as caught:
        tutorial.raise_for_failures()
    message = str(caught.value)
    assert message.startswith("Tutorial fails 5 of 29 checks:\n")
    with pytest.raises(AssertionError, match="Tutorial fails 1 of 1 checks:\n  no_future_leakage_with_mask: "):
        check_attention(third_party.Tutorial, only=["no_future_leakage_with_mask"])
    assert re.search(r"no_future_leakage_with_mask: 2.2e\+03 \(at most 1e-09\): output 0 depends on token 2", message)
    assert "of item 1 (causal=True and mask=padding([7, 4]))" in message


@pytest.mark.parametrize(
    ("causal", "name", "reason"),
    [
        (False, "no_future_leakage", "it is built with causal=False"),
        (False, "no_dropout_in_eval", "it is built with dropout=0"),
        (True, "permutation_equivariance", "it is built with causal=True"),
    ],
)
def test_options_of_an_instance_are_fixed(causal: bool, name: str, reason: str) -> None:
    assert one(SelfAttention(12, causal=causal), name) == Row(name, "not applicable", detail=reason)


def test_capabilities_can_be_declared() -> None:
    make = partial(third_party.AlwaysCausal, {"n": 16})
    assert one(make, "no_future_leakage", embed_dim=16, capabilities={"causal"}).outcome == "pass"


@pytest.mark.slow
def test_call_adapts_another_calling_convention() -> None:
    report = check_attention(
        third_party.HuggingFaceStyle, call=third_party.call_hugging_face_style, capabilities={"padding"}, fast=True
    )
    assert report["no_padding_leakage"].outcome == "pass"
    assert report["no_masked_key_leakage"].outcome == "not applicable"


def test_reference_can_be_passed() -> None:
    def reference(layer: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = layer.qkv(x).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1]  # not its root
        return (scores if mask is None else scores.masked_fill(~mask[:, 0], -1e300)).softmax(-1) @ v

    assert one(third_party.Tutorial, "matches_reference_outputs", reference=reference).outcome == "fail"


class Frozen(third_party.Correct):
    """Has a parameter that is not trained."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.out.requires_grad_(False)


class Checkpointed(third_party.Correct):
    """Uses a reentrant checkpoint, which supports ``backward()`` only."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return checkpoint(super().forward, x, mask, use_reentrant=True) if x.requires_grad else super().forward(x, mask)


class Float32Softmax(third_party.Correct):
    """Rounds its attention weights to float32."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = super().attention_weights(x, mask)
        return weights.float().double() if x.dtype == torch.float64 else weights


class WrongGradient(Float32Softmax):
    """Its gradient is 5 % too large."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return 1.05 * out - 0.05 * out.detach()


@pytest.mark.slow
def test_float32_softmax_has_wider_tolerances() -> None:
    report = check_attention(Float32Softmax, fast=True)
    assert report["gradients_match_finite_differences"].limit == 1e-2
    assert report["packed_sequences_are_independent"].limit == 1e-5
    assert one(third_party.Correct, "non_contiguous_input").limit == 1e-10
    assert one(WrongGradient, "gradients_match_finite_differences").outcome == "fail"


class UniformMaskedRows(nn.Module):
    """A fully masked row attends to all keys, as where a mask is a large negative score."""

    def __init__(self, dim: int, causal: bool = False) -> None:
        super().__init__()
        self.causal, self.qkv = causal, nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.causal else torch.tensor(True)
        allowed = allowed if mask is None else allowed & mask
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) @ v


class IntegerParameter(third_party.Correct):
    """Has an integer parameter, drawn if there is dropout; flattens its tokens by ``view``."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        if dropout:
            seed = torch.randint(99, ())
        super().__init__(dim, dropout=dropout)
        if dropout:
            self.seed = nn.Parameter(seed, requires_grad=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x.view(-1, x.shape[-1]).view(x.shape), mask)


@pytest.mark.parametrize(
    ("make", "capabilities", "failing"),
    [
        pytest.param(Frozen, None, set(), marks=pytest.mark.slow),
        # A reentrant checkpoint records no graph of the gradient, and does not raise.
        pytest.param(Checkpointed, None, {"second_derivatives_exact_or_raise"}, marks=pytest.mark.slow),
        pytest.param(IntegerParameter, None, {"non_contiguous_input"}, marks=pytest.mark.slow),
        *(
            pytest.param(make, capabilities, {"fully_masked_rows_are_zero"}, marks=pytest.mark.slow)
            for make in (UniformMaskedRows, UniformMaskedRows(12, causal=True))
            for capabilities in ({"causal", "mask"}, {"causal", "padding"})
        ),
    ],
)
def test_layer_fails_no_other_check(make: Any, capabilities: set[str] | None, failing: set[str]) -> None:
    before = deepcopy(make)
    report = check_attention(make, embed_dim=12, capabilities=capabilities, fast=True, raises=False)
    assert outcomes(report, "fail") - {"empty_input"} == failing
    assert report["gradients_match_finite_differences"].outcome == "pass"
    assert not capabilities or report["no_future_leakage_with_mask"].outcome == "pass"
    if isinstance(make, nn.Module):  # it was copied
        assert make.training
        assert all(torch.equal(before.state_dict()[name], value) for name, value in make.state_dict().items())


# Layers of attnlab


class CausalOnly(Plain):
    """Its card declares weights that are not probabilities, and no masks."""

    card = replace(Plain.card, weights="non-negative", supports=("causal", "weights"))


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("weights_reproduce_output", ""),
        ("unsupported_arguments_raise", ""),
        ("weights_sum_to_one", "its attention weights are not probabilities"),
        ("no_masked_key_leakage", "it does not take every mask"),
        ("matches_reference_outputs", "it has no reference implementation"),
    ],
)
def test_capabilities_of_a_mechanism_are_those_of_its_card(check: str, reason: str) -> None:
    row = one(CausalOnly, check)
    assert row.outcome == ("not applicable" if reason else "pass")
    assert reason in row.detail


@pytest.mark.slow
def test_recurrence_passes_all_checks_but_those_that_need_weights_a_context_or_every_mask() -> None:
    report = check_attention(MovingAverage, fast=True)
    assert {row.detail for row in report.rows if row.outcome == "not applicable"} == {
        *("it does not return attention weights", "it does not take every mask", "it takes no bias"),
        *("it takes no context", "it is not declared permutation-equivariant", "it has no reference implementation"),
    }


@pytest.mark.slow
def test_plain_attention_passes_the_contract() -> None:
    assert "submodules_are_called" in outcomes(check_attention(Plain, fast=True), "pass")


class Derived(MultiAttention):
    """Passes keyword arguments on to its base class."""

    def __init__(self, *args: Any, colour: str = "red", **options: Any) -> None:
        super().__init__(*args, **options)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        (partial(MultiAttention, num_heads=4, embed_dim=8), {}, (8, 4, "MultiAttention")),
        (partial(MultiAttention, num_heads=8), {}, (24, 8, "MultiAttention")),
        (MultiAttention, {"embed_dim": 40}, (40, 8, "MultiAttention")),
        (partial(Derived, num_heads=2), {}, (12, 2, "Derived")),
    ],
)
def test_sizes_fit_the_constructor(target: Any, options: dict[str, int], expected: tuple[int, int, str]) -> None:
    case = LayerUnderTest(target, **options)
    assert (case.embed_dim, case.num_heads, case.name) == expected
    assert case.causal_choices == (False, True)
    assert case.reference is LayerUnderTest(MultiAttention).reference is not None


def test_dropout_of_an_instance_may_be_a_module() -> None:
    layer = third_party.Correct(16)
    layer.dropout = nn.Dropout(0.1)
    assert LayerUnderTest(layer, embed_dim=16).dropout == 0.1


def test_layer_that_cannot_be_copied() -> None:
    class Uncopyable(SelfAttention):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copy")

    with pytest.raises(UserError, match="Uncopyable cannot be copied: RuntimeError: no copy"):
        check_attention(Uncopyable(12))
    name = "deepcopy_is_independent"
    assert one(Uncopyable, name) == Row(name, "fail", detail="RuntimeError: no copy")


# The report


@pytest.mark.slow
def test_report_as_text_and_json(tutorial: Report) -> None:
    assert len(str(tutorial).splitlines()) == 1 + len(tutorial.rows)
    assert re.search(r"fully_masked_rows_are_zero +fail +nan \(at most 0\)", str(tutorial))
    content = json.loads(tutorial.to_json())
    assert content["passed"] is tutorial.passed is False
    assert content["left_out"] == 4
    row = next(row for row in content["checks"] if row["check"] == "fully_masked_rows_are_zero")
    assert (row["outcome"], row["measured"], row["limit"]) == ("fail", "nan", 0.0)


def test_passing_report_raises_nothing() -> None:
    Report("layer", (Row("p", "pass", 0.0, 1.0),)).raise_for_failures()


def test_failures_with_the_same_explanation_share_a_line() -> None:
    rows = (Row("one", "fail", detail="it raises"), Row("two", "fail", detail="it raises"))
    assert Report("layer", rows).explain("fail") == ["one, two: it raises"]


def test_only_skip_and_progress() -> None:
    names: list[str] = []
    only = ["output_shape", "output_dtype"]
    report = check_attention(SelfAttention, only=only, skip=["output_dtype"], progress=names.append)
    assert names == ["output_shape"] == [row.check for row in report.rows]
    assert report.left_out == len(all_checks()) - 1


@pytest.mark.slow
def test_results_are_reproducible_under_no_grad_and_keep_the_generator() -> None:
    only = ["gradients_match_finite_differences", "dropout_is_unbiased", "no_batch_leakage", "low_precision_accuracy"]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = check_attention(SelfAttention, only=only)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        assert check_attention(SelfAttention, only=only) == first


# Old names


def test_old_names_are_accepted_with_a_warning() -> None:
    assert set(OLD_NAMES.values()) <= set(all_checks())
    with pytest.warns(DeprecationWarning, match="the check 'keeps the shape' is now 'output_shape'"):
        assert one(SelfAttention, "keeps the shape").check == "output_shape"
    with pytest.warns(DeprecationWarning, match="claims= is deprecated; use capabilities="):
        check_attention(third_party.Correct, only=["output_shape"], claims={"padding"})


# Errors


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (3, {}, "expected a layer, or a class or function that makes one, got 3"),
        (lambda: 3, {}, "<lambda> makes a int, not an nn.Module"),
        (third_party.NeedsConfig, {}, "NeedsConfig cannot be built: TypeError: .*'config'; pass its options, or a"),
        (partial(MultiAttention, num_heads=5), {"embed_dim": 12}, r"cannot be built: ValueError: embed_dim \(12\)"),
        (third_party.Correct(16), {}, "the width of the tokens of Correct is not known; pass embed_dim"),
        (nn.MultiheadAttention(8, 2), {}, "cannot be called with x alone .*; pass call="),
        (SelfAttention, {"device": "nowhere"}, "SelfAttention cannot run on nowhere"),
        (SelfAttention, {"only": ["output_shap"]}, "did you mean output_shape"),
        (SelfAttention, {"skip": ["xyzzy"]}, "unknown check 'xyzzy'; attnlab check lists all checks"),
        (SelfAttention, {"capabilities": ["casual"]}, "unknown capability 'casual'; did you mean causal?"),
    ],
)
def test_invalid_target_or_option_raises_one_line(target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_attention(target, **options)
    assert "\n" not in str(caught.value)


# Checks


@pytest.mark.parametrize(
    ("result", "row"),
    [
        (RuntimeError("the first line\nthe second"), Row("p", "fail", detail="RuntimeError: the first line")),
        (ValueError(), Row("p", "fail", detail="ValueError")),
        (CheckFailed("reason"), Row("p", "fail", detail="reason")),
        (NotApplicable("reason"), Row("p", "not applicable", detail="reason")),
        (Measurement(1.0, 1.0), Row("p", "pass", 1.0, 1.0)),
        (Measurement(1.1, 1.0, "here"), Row("p", "fail", 1.1, 1.0, "here")),
    ],
)
def test_result_of_a_check_is_a_row(result: Any, row: Row) -> None:
    def measure(case: LayerUnderTest) -> Measurement:
        if isinstance(result, Exception):
            raise result
        return result

    assert run_check(Check("p", (), slow=False, doc="", measure=measure), LayerUnderTest(SelfAttention)) == row


@pytest.mark.parametrize(
    ("values", "value", "detail"),
    [((0.5, 2.0, 3.0), 3.0, "1"), ((0.5, 1.0), 1.0, ""), ((0.5, math.nan, 3.0), math.nan, "1"), ((), 0.0, "")],
)
def test_largest_value_counts_and_the_first_above_the_limit_is_located(
    values: tuple[float, ...], value: float, detail: str
) -> None:
    result = largest(((number, str(i)) for i, number in enumerate(values)), 1.0)
    assert (result.value, result.detail) == (pytest.approx(value, nan_ok=True), detail)
    assert result.passed is (not detail)


class RefusesMasks(third_party.Correct):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("no mask is allowed")
        return super().forward(x)


@pytest.mark.parametrize("name", ["bfloat16_autocast", "non_contiguous_input", "no_masked_key_leakage"])
def test_exception_of_the_layer_is_reported_with_its_configuration(name: str) -> None:
    assert one(RefusesMasks, name).detail == "ValueError: no mask is allowed (mask=padding([7, 4]))"


def test_registration_rejects_duplicates_and_unknown_capabilities() -> None:
    all_checks()  # registers them, if this test comes first
    with pytest.raises(ValueError, match="a check named 'output_shape' exists already"):
        check("output_shape")(lambda case: Measurement(0, 0))
    with pytest.raises(UnknownNameError, match="unknown capability 'pading'; did you mean padding"):
        check("new", needs=("pading",))


def test_checks_are_identifiers_with_documentation_and_slow_ones_come_last() -> None:
    checks = all_checks().values()
    assert all(item.doc and item.name.isidentifier() and item.name.islower() for item in checks)
    slow = [item.slow for item in checks]
    assert slow == sorted(slow)
    assert any(slow)


class Branching(third_party.Correct):
    """Branches on a value of its tokens, which `torch.export` cannot trace."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if x.sum() > 0 else x + 0, mask)


def test_branching_layer_fails_export_only_if_declared_exportable() -> None:
    for name in ("export_matches_eager", "onnx_matches_eager", "traceable"):
        assert one(Branching, name) == Row(name, "not applicable", detail="it is not declared exportable")
    assert one(Branching, "export_matches_eager", capabilities={"mask", "export"}).outcome == "fail"


@pytest.mark.slow
def test_branching_layer_compiles_in_several_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_only(monkeypatch, 0)
    check_attention(Branching, only=["compile_matches_eager"])


def test_page_lists_every_check_and_every_capability() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8").splitlines()
    for item in all_checks().values():
        assert f"| `{item.name}` | {' '.join(item.doc.split())} | {', '.join(item.needs)} |" in page
    assert [name for name in CAPABILITIES if not any(line.startswith(f"| `{name}` |") for line in page)] == []


def test_package_exports_check_attention() -> None:
    assert attnlab.check_attention is check_attention
