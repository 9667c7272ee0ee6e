"""The forward pass is short enough to step through: stack frames and function calls inside attnlab are counted."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnlab
from attnlab.masks import Mask, causal, padding
from attnlab.models.multihead import MultiAttention
from attnlab.nn.cache import RecurrentState
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.softmax import BACKENDS, SoftmaxMap

B, N, D, H = 3, 17, 20, 5
ROOTS = tuple(str(Path(attnlab.__file__).parents[i] / name) for i, name in ((0, ""), (1, "models")))


def is_ours(path: str) -> bool:
    return path.startswith(ROOTS)


def calls(work: Callable[[], object]) -> list[str]:
    """The Python functions of attnlab that ``work`` calls, comprehensions and generators included."""
    names: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and is_ours(frame.f_code.co_filename):
            names.append(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return names


def layer_and_tokens(**options: bool) -> tuple[MultiAttention, Tensor]:
    return MultiAttention(D, H, **options).eval(), torch.randn(B, N, D)


def test_four_frames_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks, kernel = [], F.scaled_dot_product_attention

    def watched(*args: object, **options: object) -> Tensor:
        stacks.append([frame.name for frame in traceback.extract_stack() if is_ours(frame.filename)])
        return kernel(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    for options in ({}, {"causal": True}):
        layer, x = layer_and_tokens(**options)
        layer(x)
        assert stacks.pop() == ["forward", "_forward", "apply", "run"]


@pytest.mark.parametrize(
    ("options", "mask", "limit"),
    [
        ({}, None, 15),
        ({"causal": True}, None, 25),
        ({"causal": True}, padding(torch.tensor([3, N, 11])), 40),
        ({"causal": True}, padding(torch.tensor([3, N, 11]), mask_queries=True), 40),
        ({}, padding(torch.tensor([3, N, 11])), 40),
    ],
    ids=["no mask", "causal", "causal and padding", "causal and padded queries", "padding"],
)
@torch.no_grad()
def test_few_calls(options: dict[str, bool], mask: Mask | None, limit: int) -> None:
    layer, x = layer_and_tokens(**options)
    layer(x, mask=mask)  # binds the mask, as the first layer of a network does
    names = calls(lambda: layer(x, mask=mask))
    assert len(names) <= limit, names


def test_a_mask_is_bound_once_for_all_layers() -> None:
    first, x = layer_and_tokens(causal=True)
    second = MultiAttention(D, H, causal=True)
    mask = padding(torch.tensor([3, N, 11]))
    binding = calls(lambda: first(x, mask=mask))
    assert "Mask.bind" in binding
    assert "Mask.bind" not in calls(lambda: second(x, mask=mask))
    assert "Mask.bind" in calls(lambda: second(x[:, :13], mask=padding(torch.tensor([3, 2, 11])))), "another length"
    other = MultiAttention(D, H)
    torch.testing.assert_close(other(x, mask=mask & causal()), other(x, mask=causal() & mask))
    torch.testing.assert_close(other(x, mask=mask)[1], other(x)[1])


def test_a_mask_that_changed_in_place_is_bound_again() -> None:
    layer, x = layer_and_tokens()
    lengths = torch.tensor([3, N, 11])
    mask = padding(lengths)
    layer(x, mask=mask)
    lengths[1] = 5
    torch.testing.assert_close(layer(x, mask=mask), layer(x, mask=padding(torch.tensor([3, 5, 11]))))


def test_a_mask_is_usable_in_and_outside_of_inference_mode() -> None:
    layer, x = layer_and_tokens()
    mask = padding(torch.tensor([3, 0, 11]))
    with torch.inference_mode():
        layer(x, mask=mask)
    x.requires_grad_()
    layer(x, mask=mask).sum().backward()
    assert x.grad is not None
    assert not x.grad[1].any()


def test_a_mask_that_is_too_long_is_refused_again() -> None:
    layer, x = layer_and_tokens()
    mask = padding(torch.tensor([3, N, 11]))
    layer(x, mask=mask)
    with pytest.raises(ValueError, match="17"):
        layer(x[:, :13], mask=mask)


def test_the_last_backend_takes_every_call() -> None:
    q = torch.randn(1, 1, 2, 3)
    assert [type(backend).__name__ for backend in BACKENDS if backend.applies(AttentionCall(q, q, q)) is not None] == [
        "Fused",
        "Sdpa",
    ]


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 5, 7)])
def test_scale_is_an_argument_of_the_op(shape: tuple[int, ...]) -> None:
    q, k = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    weights = SoftmaxMap(q, k, causal().bind(5), scale=0.3)
    expected = (
        (0.3 * q @ k.mT).reshape(2, -1, 5, 5).masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf).softmax(-1)
    )
    torch.testing.assert_close(weights.materialize(), expected)
    values = torch.randn(2, expected.shape[1], 5, 11, dtype=torch.float64)
    torch.testing.assert_close(weights.apply(values), expected @ values)


def test_nothing_is_recorded_without_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_tokens(causal=True)
    monkeypatch.setattr("attnlab.ops.softmax._explain", lambda *_: pytest.fail("the text was built"))
    layer(x)
    monkeypatch.undo()
    with record_dispatch() as records:
        layer(x)
    assert [record.name for record in records] == ["causal"]


def test_a_recurrent_state_is_no_kv_cache() -> None:
    layer, x = layer_and_tokens(causal=True)
    with pytest.raises(TypeError, match=r"cache must be a KVCache \(see make_cache\), not a RecurrentState"):
        layer(x, cache=RecurrentState())
