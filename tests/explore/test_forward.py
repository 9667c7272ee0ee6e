"""The forward pass under a setup: changes of the mask and of the scores, and heads without effect."""

from __future__ import annotations

import pytest
import torch
from explored import HEADS, LENGTH, WIDTH, multihead, retention, stacked

from attnlab import masks
from attnlab.catalog import registry
from attnlab.explore import forward
from attnlab.explore.setup import MaskChange, Pretrained, ScoreChange, Setup
from attnlab.nn.attention import Attention
from attnlab.utils.errors import UserError


def test_without_changes_the_output_is_that_of_the_network() -> None:
    subject = stacked(multihead(), multihead(seed=1))
    result = forward.run(subject, Setup())
    assert torch.equal(result.output, subject.run())
    for layer in result.layers:
        assert isinstance(layer.layer, Attention)
        assert torch.equal(layer.weights(), layer.layer.attention_weights(layer.x)[0])


def test_layers_are_left_as_they_were() -> None:
    subject = stacked(multihead())
    before = subject.run()
    forward.run(subject, Setup(mask=MaskChange(prefix=5), scores=ScoreChange(temperature=3), ablated=((0, 1),)))
    assert torch.equal(subject.run(), before)
    assert subject.layers[0].causal


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (MaskChange(window=3), masks.causal() & masks.sliding_window(3)),
        (MaskChange(documents=(4, 5)), masks.causal() & masks.documents(torch.tensor([0] * 4 + [1] * 5 + [2] * 2))),
        (MaskChange(prefix=5), masks.causal() | masks.prefix(5)),
        (MaskChange(window=5, documents=(7,)), None),
    ],
)
def test_masks_are_combined_with_that_of_the_layer(change: MaskChange, expected: masks.Mask | None) -> None:
    layer = multihead()
    result = forward.run(stacked(layer), Setup(mask=change)).layers[0]
    if expected is None:
        ids = torch.tensor([0] * 7 + [1] * 4)
        expected = masks.causal() & masks.sliding_window(5) & masks.documents(ids)
    allowed = expected.materialize(LENGTH, LENGTH)
    assert torch.equal(result.weights() > 0, allowed.expand(HEADS, -1, -1))


def test_blocked_pairs_have_no_weight_and_the_rest_is_normalized() -> None:
    result = forward.run(stacked(multihead()), Setup(mask=MaskChange(blocked=((5, 2), (5, 3))))).layers[0]
    weights = result.weights()
    assert (weights[:, 5, 2:4] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(HEADS, LENGTH))


def test_changed_scores_change_the_output_downstream() -> None:
    first, second = multihead(), multihead(seed=1)
    result = forward.run(stacked(first, second), Setup(scores=ScoreChange(temperature=4.0)))
    x = result.layers[0].x
    scores = first.attention_map(x).materialize().log() / 4  # softmax(s / T) from log-softmax(s)
    expected = scores.softmax(-1)
    torch.testing.assert_close(result.layers[0].weights(), expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.layers[0].output, first.apply_weights(expected, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.layers[1].x, x + result.layers[0].output)


def test_the_largest_weights_keep_the_sum_of_the_row() -> None:
    weights = forward.run(stacked(multihead()), Setup(scores=ScoreChange(top_k=2))).layers[0].weights()
    whole = forward.run(stacked(multihead()), Setup()).layers[0].weights()
    assert ((weights > 0).sum(-1) <= 2).all()
    assert ((weights > 0).sum(-1)[:, 2:] == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(HEADS, LENGTH))
    assert torch.equal(weights.argmax(-1), whole.argmax(-1))


def test_signed_weights_are_selected_by_size_and_not_rescaled() -> None:
    whole = forward.run(stacked(retention()), Setup()).layers[0].weights()
    kept = forward.run(stacked(retention()), Setup(scores=ScoreChange(top_k=3))).layers[0].weights()
    assert (whole < 0).any()
    assert torch.equal(kept[kept != 0], whole[kept != 0])
    assert ((kept != 0).sum(-1)[:, 3:] == 3).all()


def test_a_head_without_effect_is_missing_from_the_output() -> None:
    layer = multihead()
    result = forward.run(stacked(layer), Setup(ablated=((0, 1),)))
    x = result.layers[0].x
    weights = layer.attention_weights(x)
    assert torch.equal(result.layers[0].weights(), weights[0])  # its weights are shown
    weights[:, 1] = 0
    torch.testing.assert_close(result.layers[0].output, layer.apply_weights(weights, x))


def test_special_tokens_are_hidden_from_the_weights_only() -> None:
    special = (True, *[False] * (LENGTH - 2), True)
    subject = stacked(multihead(causal=False), special=special)
    setup = Setup(source=Pretrained())
    result = forward.run(subject, setup)
    weights = result.layers[0].weights()
    assert (weights[:, :, [0, -1]] == 0).all()
    assert (weights[:, [0, -1]] == 0).all()
    torch.testing.assert_close(weights[:, 1:-1].sum(-1), torch.ones(HEADS, LENGTH - 2))
    assert torch.equal(result.output, subject.run())
    shown = forward.run(subject, Setup(source=Pretrained(hide_special=False))).layers[0].weights()
    ratio = shown[:, 1:-1, 1:-1] / shown[:, 1:-1, 1:-1].sum(-1, keepdim=True)
    torch.testing.assert_close(weights[:, 1:-1, 1:-1], ratio)


@pytest.mark.parametrize("keep", [True, False])
def test_pooled_weights_are_exact_sums(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = forward.run(stacked(multihead()), Setup()).layers[0].weights()
    for chunk in (1, 2**24):  # through rows, and through a pass over all queries
        monkeypatch.setattr(forward, "CHUNK_VALUES", chunk)
        layer = forward.run(stacked(multihead()), Setup(), keep=keep).layers[0]
        pooled = layer.pooled(slice(1, 11), slice(2, 9), 3)
        blocks = [(slice(1, 5), slice(5, 9), slice(9, 11)), (slice(2, 5), slice(5, 8), slice(8, 9))]
        expected = torch.stack(
            [torch.stack([whole[:, r, c].sum(-1).mean(-1) for c in blocks[1]], -1) for r in blocks[0]], 1
        )
        torch.testing.assert_close(pooled, expected)
        torch.testing.assert_close(layer.pooled(slice(0, 11), slice(0, 11), 11, head=2), whole[2:])


@pytest.mark.parametrize(
    ("setup", "line"),
    [
        (Setup(ablated=((1, 0),)), "there is no head 0 in layer 1"),
        (Setup(ablated=((0, 3),)), "there is no head 3 in layer 0"),
        (Setup(mask=MaskChange(documents=(7, 7))), "14 tokens together, but the input has 11"),
        (Setup(mask=MaskChange(blocked=((3, 11),))), "beyond the input, which has 11 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(setup: Setup, line: str) -> None:
    with pytest.raises(UserError, match=line):
        forward.run(stacked(multihead()), setup)


@pytest.mark.parametrize(
    ("setup", "line"),
    [
        (Setup(scores=ScoreChange(temperature=2)), "Retention: its weights cannot be changed by temperature"),
        (Setup(mask=MaskChange(prefix=2)), "is always causal"),
    ],
)
def test_changes_that_a_recurrence_does_not_have_are_refused(setup: Setup, line: str) -> None:
    subject = stacked(retention())
    with pytest.raises(UserError, match=line):
        forward.run(subject, setup)
    assert not subject.layers[0]._forward_hooks
    assert not subject.layers[0]._forward_pre_hooks


def test_a_change_applies_to_the_layers_that_support_it_and_the_others_are_named() -> None:
    subject = stacked(multihead(), retention())
    plain, result = (forward.run(subject, Setup(scores=ScoreChange(temperature=t))) for t in (1.0, 3.0))
    assert result.notes == ("temperature does not apply to the layers of Retention, which are unchanged",)
    assert not torch.equal(result.layers[0].weights(), plain.layers[0].weights())
    layer = result.layers[1].layer
    assert isinstance(layer, Attention)
    assert torch.equal(result.layers[1].weights(), layer.attention_weights(result.layers[1].x)[0])
    assert plain.notes == ()


def test_changed_weights_that_need_too_much_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * 4 * HEADS * LENGTH * LENGTH
    for scores in (ScoreChange(temperature=2), ScoreChange(top_k=1)):
        monkeypatch.setattr(forward, "memory_limit", lambda: needed)
        forward.run(stacked(multihead()), Setup(scores=scores))
        monkeypatch.setattr(forward, "memory_limit", lambda: needed - 1)
        with pytest.raises(UserError, match=f"{needed:,} bytes"):
            forward.run(stacked(multihead()), Setup(scores=scores))


def test_values_that_are_not_finite_are_named() -> None:
    first, second = multihead(), multihead(seed=1)
    with torch.no_grad():
        second.qkv.weight.fill_(3e38)
    with pytest.raises(UserError, match="layer 1, Multi-head attention, computes values that are not finite"):
        forward.run(stacked(first, second), Setup())


@pytest.mark.parametrize("name", ["rwkv7", "multihead", "selfhead"])
def test_nothing_of_a_head_that_is_left_out_reaches_the_output(name: str) -> None:
    options = {} if name == "selfhead" else {"num_heads": HEADS}
    layer = registry.load(name)(WIDTH, **options).eval()
    every = tuple((0, head) for head in range(layer.num_heads))
    with torch.no_grad():
        output = forward.run(stacked(layer), Setup(ablated=every)).layers[0].output
        nothing = layer.output(torch.zeros(1, LENGTH, layer.output.in_features))
    torch.testing.assert_close(output, nothing)
