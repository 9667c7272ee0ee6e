"""What `check_attention` makes of a layer: ours, a stranger's, a class, a function, an instance."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import strangers
import torch
from plain import Plain
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnlab
from attnlab.checks import (
    Broken,
    Measure,
    NotClaimed,
    Promise,
    Report,
    Row,
    Subject,
    check_attention,
    every_promise,
    promise,
)
from attnlab.checks.capabilities import CLAIMS
from attnlab.checks.suite import check
from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention
from attnlab.nn.attention import Attention, Card
from attnlab.utils.errors import UnknownNameError, UserError


def outcomes(report: Report, outcome: str) -> set[str]:
    return {row.promise for row in report.rows if row.outcome == outcome}


# Strangers


def test_a_sound_stranger_keeps_all_that_its_signatures_say() -> None:
    report = check_attention(strangers.Sound, fast=True)
    assert {"causal hears no future under a mask", "weights sum to one", "dropout is right on average"} <= outcomes(
        report, "pass"
    )
    assert report["what is not claimed raises"].detail == "it is no attnlab.Attention"


def test_a_careless_stranger_is_told_where() -> None:
    with pytest.raises(AssertionError) as caught:
        check_attention(strangers.Careless, fast=True)
    message = str(caught.value)
    assert message.startswith("Careless breaks 5 of 29 promises:\n")
    assert "causal hears no future under a mask: " in message
    assert "output 0 hears token 2 of item 1 (causal=True and mask=padding([7, 4]))" in message


def test_an_instance_is_copied_and_checked_as_it_was_made() -> None:
    layer = strangers.Sound(16, causal=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    report = check_attention(layer, embed_dim=16, fast=True)
    assert report["causal hears no future"].outcome == "pass"
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert layer.training
    assert next(layer.parameters()).dtype == torch.float32


def test_an_instance_that_was_made_without_causal_cannot_be_asked_for_it() -> None:
    report = check_attention(SelfAttention(12), fast=True)
    row = report["causal hears no future"]
    assert (row.outcome, row.detail) == ("not claimed", "it comes with causal=False")
    assert report["dropout is off in eval"].detail == "it comes with dropout=0"


def test_a_causal_instance_knows_an_order() -> None:
    row = check_attention(SelfAttention(12, causal=True), fast=True)["permuted in, permuted out"]
    assert (row.outcome, row.detail) == ("not claimed", "it comes with causal=True")


def test_a_function_and_claims_for_what_no_signature_says() -> None:
    report = check_attention(
        lambda: strangers.AlwaysCausal({"n": 16}), embed_dim=16, claims={"causal"}, fast=True, raises=False
    )
    assert report["causal hears no future"].outcome == "pass"


def test_another_way_to_be_asked() -> None:
    report = check_attention(strangers.FaceHugger, call=strangers.ask_face_hugger, claims={"padding"}, fast=True)
    assert report["padding is never heard"].outcome == "pass"
    assert report["masked keys are never heard"].outcome == "not claimed"


def test_multihead_attention_of_torch() -> None:
    def call(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        return layer(x, x, x, attn_mask=_forbidden(layer, mask), need_weights=False)[0]

    def weights(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        return layer(x, x, x, attn_mask=_forbidden(layer, mask), average_attn_weights=False)[1]

    make = partial(nn.MultiheadAttention, batch_first=True)
    report = check_attention(make, call=call, weights=weights, fast=True, raises=False)
    assert {"masked keys are never heard", "gradients match finite differences"} <= outcomes(report, "pass")
    assert {"empty rows give zeros", "weights hold no dropout"} <= outcomes(report, "fail")


def _forbidden(layer: Any, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else (~mask).repeat_interleave(layer.num_heads, 0)


def test_a_reference_of_ones_own() -> None:
    def reference(layer: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = layer.qkv(x).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1]  # not its root
        return (scores if mask is None else scores.masked_fill(~mask[:, 0], -1e300)).softmax(-1) @ v

    only = ["fast path = reference, outputs"]
    report = check_attention(strangers.Careless, reference=reference, only=only, raises=False)
    assert report.rows[0].outcome == "fail"


class Frozen(strangers.Sound):
    """Has a parameter that is not trained."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.out.requires_grad_(False)


def test_a_parameter_that_is_not_trained_needs_no_gradient() -> None:
    check_attention(Frozen, fast=True)


class Recomputing(strangers.Sound):
    """Keeps nothing for the backward pass, in the way that knows ``backward()`` alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return checkpoint(super().forward, x, mask, use_reentrant=True) if x.requires_grad else super().forward(x, mask)


def test_a_layer_that_computes_its_steps_anew_is_asked_by_backward() -> None:
    report = check_attention(Recomputing, fast=True, raises=False)
    assert report["gradients match finite differences"].outcome == "pass"
    # A reentrant checkpoint does not record a graph of the gradient, and does not say so.
    assert outcomes(report, "fail") == {"second derivatives are right or raise"}


class Rounding(strangers.Sound):
    """Takes its softmax in float32, as many do, whatever it is given."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (
            super().attention_weights(x, mask).float().double()
            if x.dtype == torch.float64
            else super().attention_weights(x, mask)
        )


class Steep(Rounding):
    """Says a slope that is too large by a part in twenty."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(x, mask)
        return 1.05 * out - 0.05 * out.detach()


def test_a_softmax_in_float32_is_held_to_what_float32_gives() -> None:
    report = check_attention(Rounding, fast=True)
    assert report["gradients match finite differences"].limit == 1e-2
    assert report["packed sequences are each alone"].limit == 1e-5
    assert check_attention(strangers.Sound, only=["takes any strides"])["takes any strides"].limit == 1e-10
    assert not check_attention(Steep, only=["gradients match finite differences"], raises=False).passed


class Usual(nn.Module):
    """A token that may look at nothing looks at everything, as where a mask is a large negative number."""

    def __init__(self, dim: int, causal: bool = False) -> None:
        super().__init__()
        self.causal, self.qkv = causal, nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.causal else torch.tensor(True)
        seen = seen if mask is None else seen & mask
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) @ v


@pytest.mark.parametrize("claims", [{"causal", "mask"}, {"causal", "padding"}])
@pytest.mark.parametrize("make", [Usual, Usual(12, causal=True)])
def test_what_a_stranger_says_where_there_is_nothing_to_look_at_counts_once(make: Any, claims: set[str]) -> None:
    report = check_attention(make, embed_dim=12, claims=claims, fast=True, raises=False)
    assert outcomes(report, "fail") - {"takes an empty batch or sequence"} == {"empty rows give zeros"}
    assert report["causal hears no future under a mask"].outcome == "pass"


class Keeping(strangers.Sound):
    """Keeps a seed among its parameters, drawn when it is made with dropout; and sees its tokens as one long row."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        if dropout:
            seed = torch.randint(99, ())
        super().__init__(dim, dropout=dropout)
        if dropout:
            self.seed = nn.Parameter(seed, requires_grad=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x.view(-1, x.shape[-1]).view(x.shape), mask)


def test_an_odd_habit_counts_once() -> None:
    assert outcomes(check_attention(Keeping, fast=True, raises=False), "fail") == {"takes any strides"}


# Ours


class Running(Attention):
    """The mean of the values so far: no map of softmax, always causal, no mask."""

    card = Card(
        title="",
        summary="",
        paper="",
        authors="",
        year=2026,
        arxiv=None,
        kind="another operator",
        heads="1",
        time="n",
        memory="n",
        representation="",
        use_case="",
        supports=("causal", "weights"),
    )

    def __init__(self, embed_dim: int, *, causal: bool = False, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(embed_dim, causal=causal, dropout=dropout)
        self.value, self.output = (nn.Linear(embed_dim, embed_dim, **options) for _ in range(2))

    def _attention_weights(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        seen = torch.ones(x.shape[1], x.shape[1]).to(x)
        seen = seen if mask is None else mask.tensor()[0, 0].to(x)
        return 2 * (seen / seen.sum(-1, keepdim=True)).expand(len(x), 1, -1, -1)

    def _apply_weights(self, weights: Tensor, x: Tensor) -> Tensor:
        return self.output(weights.squeeze(1) @ self.value(x))

    def _forward(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        weights = torch.dropout(self._attention_weights(x, mask), self.dropout, self.training)
        return self._apply_weights(weights, x)


def test_a_mechanism_is_held_to_its_card() -> None:
    report = check_attention(Running, fast=True)
    assert report["weights make the output"].outcome == "pass"
    assert report["weights sum to one"].detail == "its weights are no probabilities"
    assert report["masked keys are never heard"].detail == "it does not take every mask"
    assert report["fast path = reference, outputs"].detail == "there is no reference to compare with"
    assert report["what is not claimed raises"].outcome == "pass"


def test_options_go_in_with_partial() -> None:
    subject = Subject(partial(MultiAttention, num_heads=4, embed_dim=8))
    assert (subject.embed_dim, subject.num_heads, subject.name) == (8, 4, "MultiAttention")


def test_a_width_is_found_that_fits_the_heads() -> None:
    assert Subject(partial(MultiAttention, num_heads=8)).embed_dim == 24
    assert Subject(MultiAttention, embed_dim=40).embed_dim == 40


def test_a_class_that_passes_its_options_on_takes_them() -> None:
    class Mine(MultiAttention):
        def __init__(self, *args: Any, colour: str = "red", **options: Any) -> None:
            super().__init__(*args, **options)

    assert Subject(Mine).causal_choices == (False, True)
    assert Subject(partial(Mine, num_heads=2)).num_heads == 2


def test_an_instance_whose_dropout_is_a_module() -> None:
    layer = strangers.Sound(16)
    layer.dropout = nn.Dropout(0.1)
    assert Subject(layer, embed_dim=16).dropout == 0.1


def test_a_layer_that_cannot_be_copied_is_refused_and_a_class_of_such_fails() -> None:
    class Stuck(SelfAttention):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("stuck")

    with pytest.raises(UserError, match="Stuck cannot be copied: RuntimeError: stuck"):
        check_attention(Stuck(12))
    row = check_attention(Stuck, only=["deepcopy is the same, apart"], raises=False).rows[0]
    assert (row.outcome, row.detail) == ("fail", "RuntimeError: stuck")


def test_a_folder_s_reference_serves_those_that_extend_its_class() -> None:
    class Mine(MultiAttention):
        pass

    assert Subject(Mine).reference is Subject(MultiAttention).reference
    assert Subject(Running).reference is None


# The answer


def test_the_report_prints_every_row_and_is_json() -> None:
    report = check_attention(strangers.Careless, fast=True, raises=False)
    assert not report.passed
    assert len(str(report).splitlines()) == 1 + len(report.rows)
    assert re.search(r"empty rows give zeros +fail +nan +0", str(report))
    found = json.loads(report.to_json())
    assert found["passed"] is False
    assert found["left_out"] == 4
    row = next(row for row in found["promises"] if row["promise"] == "empty rows give zeros")
    assert (row["outcome"], row["measured"], row["limit"]) == ("fail", "nan", 0.0)


def test_a_passing_report_has_nothing_to_raise() -> None:
    Report("it", (Row("p", "pass", 0.0, 1.0),)).raise_for_failures()


def test_failures_that_say_the_same_share_a_line() -> None:
    rows = (Row("one", "fail", detail="it breaks"), Row("two", "fail", detail="it breaks"))
    assert Report("it", rows).explain("fail") == ["one; two: it breaks"]


def test_only_and_skip_and_progress() -> None:
    seen: list[str] = []
    only = ["keeps the shape", "keeps the dtype"]
    report = check_attention(SelfAttention, only=only, skip=["keeps the dtype"], progress=seen.append)
    assert seen == ["keeps the shape"] == [row.promise for row in report.rows]
    assert report.left_out == len(every_promise()) - 1


def test_torch_s_generator_is_left_as_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check_attention(SelfAttention, only=["dropout is right on average"])
    assert torch.equal(torch.rand(3), expected)


def test_it_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        check_attention(SelfAttention, only=["gradients match finite differences", "causal hears no future"])


def test_the_same_numbers_every_time() -> None:
    first, second = (check_attention(SelfAttention, fast=True) for _ in range(2))
    assert first == second


# What is refused


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (3, {}, "a layer is needed, or a class or function that makes one, not 3"),
        (lambda: 3, {}, "<lambda> makes a int, not an nn.Module"),
        (strangers.Broken, {}, "Broken cannot be built: TypeError: .*'config'; give its options, or a function"),
        (partial(MultiAttention, num_heads=5), {"embed_dim": 12}, r"cannot be built: ValueError: embed_dim \(12\)"),
        (strangers.Sound(16), {}, "the width of the tokens that Sound takes is not known; give embed_dim"),
        (nn.MultiheadAttention(8, 2), {}, "does not take tokens alone .*; say how to ask it with call="),
        (SelfAttention, {"device": "nowhere"}, "SelfAttention cannot run on nowhere"),
        (SelfAttention, {"only": ["keeps the shap"]}, "did you mean keeps the shape"),
        (SelfAttention, {"skip": ["xyzzy"]}, "unknown promise 'xyzzy'; attnlab check shows them all"),
        (SelfAttention, {"claims": ["casual"]}, "unknown claim 'casual'; did you mean causal?"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_line(target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_attention(target, **options)
    assert "\n" not in str(caught.value)


# Promises


def one(measure: Any) -> Row:
    return check(Promise("p", (), slow=False, doc="", measure=measure), Subject(SelfAttention))


def raises(error: Exception) -> Any:
    def measure(subject: Subject) -> Measure:
        raise error

    return measure


def test_an_exception_is_a_failure_in_one_line() -> None:
    row = one(raises(RuntimeError("the first line\nthe second")))
    assert (row.outcome, row.measured, row.detail) == ("fail", None, "RuntimeError: the first line")
    assert one(raises(ValueError())).detail == "ValueError"
    assert one(raises(Broken("as said"))) == Row("p", "fail", detail="as said")
    assert one(raises(NotClaimed("why"))) == Row("p", "not claimed", detail="why")


@pytest.mark.parametrize(("value", "outcome"), [(1.0, "pass"), (1.1, "fail"), (float("nan"), "fail")])
def test_a_number_is_held_to_its_limit(value: float, outcome: str) -> None:
    assert one(lambda subject: Measure(value, 1.0)).outcome == outcome


def test_a_promise_is_a_function_with_a_name_of_its_own() -> None:
    every_promise()  # registers them, if this test comes first
    with pytest.raises(ValueError, match="there is a promise 'keeps the shape' already"):
        promise("keeps the shape")(lambda subject: Measure(0, 0))
    with pytest.raises(UnknownNameError, match="unknown claim 'maks'; did you mean mask"):
        promise("new", needs=("maks",))


def test_every_promise_says_what_it_measures() -> None:
    assert all(found.doc for found in every_promise().values())


def test_the_slow_promises_come_last() -> None:
    slow = [found.slow for found in every_promise().values()]
    assert slow == sorted(slow)
    assert any(slow)


def test_eager_attention_keeps_every_promise_of_the_contract() -> None:
    report = check_attention(Plain, fast=True)
    assert "submodules are called" in outcomes(report, "pass")


class Deciding(strangers.Sound):
    """Branches on a value of its tokens, which `torch.export` cannot trace."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if x.sum() > 0 else x + 0, mask)


def test_a_layer_that_branches_on_values_fails_export_only_where_it_claims_it() -> None:
    only = ["torch.export = eager", "ONNX = eager", "traceable"]
    report = check_attention(Deciding, only=only)
    assert outcomes(report, "not claimed") == set(only)
    assert report["traceable"].detail == "it does not claim to be exported"
    claimed = check_attention(Deciding, only=only[:1], claims={"mask", "export"}, raises=False)
    assert outcomes(claimed, "fail") == {"torch.export = eager"}


@pytest.mark.slow
def test_a_layer_that_branches_on_values_compiles_in_several_graphs() -> None:
    check_attention(Deciding, only=["torch.compile = eager"])


def test_the_page_shows_every_promise_and_every_claim() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8").splitlines()
    for found in every_promise().values():
        assert f"| {found.name} | {' '.join(found.doc.split())} | {', '.join(found.needs)} |" in page
    assert [claim for claim in CLAIMS if not any(line.startswith(f"| `{claim}` |") for line in page)] == []


def test_the_package_offers_it() -> None:
    assert attnlab.check_attention is check_attention
