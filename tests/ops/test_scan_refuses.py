"""Error messages of the scan."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from scans import B, H, d, scan_case, w

from attnlab.ops.scan import linear_scan

N = 13


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **{"dtype": torch.float64, **options})


SHAPES = {"k": (B, H, N, d), "v": (B, H, N, w), "log_decay": (H,), "beta": (B, H, N), "state": (B, H, d, w)}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": zeros(B, N, d)}, "q must have shape (batch, heads, steps, width), not (2, 13, 5)"),
    ({"k": zeros(B, H, N, d + 1)}, "k must have the shape of q, (2, 3, 13, 5), not (2, 3, 13, 6)"),
    ({"v": zeros(B, H, N - 1, w)}, "v must have shape (2, 3, 13, width), as q is (2, 3, 13, 5), not (2, 3, 12, 7)"),
    ({"v": zeros(B, H, N)}, "v must have shape"),
    ({"beta": zeros(B, H, N, 1)}, "beta must have shape (batch, heads, steps) = (2, 3, 13), not (2, 3, 13, 1)"),
    ({"log_decay": zeros(N)}, "log_decay must have shape (heads,) = (3,), (batch, heads, steps) = (2, 3, 13) or "),
    ({"log_decay": zeros(N)}, "(batch, heads, steps, key width) = (2, 3, 13, 5), not (13,)"),
    ({"log_decay": zeros(B, H, N, 1)}, "log_decay must have shape"),
    ({"log_decay": zeros(H) + 0.25}, "log_decay must be at most 0, a decay of at most 1, not 0.25; give the logarithm"),
    ({"a": zeros(B, H, N, d)}, "a and b must be given together; b is missing"),
    ({"a": zeros(B, H, N, d), "b": zeros(B, H, N, w)}, "b must have the shape of q, (2, 3, 13, 5), not (2, 3, 13, 7)"),
    (
        {"a": zeros(B, H, N, d), "b": zeros(B, H, N, d), "beta": zeros(B, H, N)},
        "give either beta or a and b; for both, give a = -beta * decay * k, b = k and beta * v as v",
    ),
    ({"state": zeros(B, H, d)}, "state must have shape (batch, heads, key width, value width)"),
    ({"state": zeros(B, H, w, d)}, "= (2, 3, 5, 7), not (2, 3, 7, 5)"),
    (
        {"state": zeros(B, H, d, w).float()},
        "state must be torch.float64, in which torch.float64 values are accumulated, not torch.float32; convert it "
        "with state.to(torch.float64)",
    ),
    (
        {"segments": [slice(0, N)], "state": zeros(B, H, d, w)},
        "state must have shape (segments, batch, heads, key width, value width) = (1, 2, 3, 5, 7)",
    ),
    ({"form": "fast"}, "form must be one of auto, chunked, parallel, recurrent, not 'fast'"),
    ({"chunk": 0}, "chunk must be at least 1, not 0"),
    (
        {"segments": [slice(0, 5), slice(6, N)]},
        "segments must be consecutive from step 0 to step 13; slice(6, 13, None) comes after step 5",
    ),
    ({"segments": [slice(0, 5), slice(4, N)]}, "comes after step 5"),
    ({"segments": [slice(0, 5), slice(5, 4), slice(4, N)]}, "comes after step 5"),
    ({"segments": [slice(0, N, 2)]}, "comes after step 0"),
    ({"segments": [slice(0, 5)]}, "from step 0 to step 13; they end at step 5"),
    ({"segments": []}, "they end at step 0"),
    *(({n: zeros(*shape, device="meta")}, f"{n} is on meta, q on cpu; move it there") for n, shape in SHAPES.items()),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_invalid_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_scan(**{**scan_case("plain", N, started=False), **change})


@pytest.mark.parametrize("name", ["q", "k", "v", "log_decay", "beta", "state"])
def test_integers_are_refused(name: str) -> None:
    case = scan_case("delta rule, scalar decay", N)
    with pytest.raises(TypeError, match=f"{name} must be a float tensor, not torch.int64"):
        linear_scan(**{**case, name: case[name].long()})


def test_a_half_precision_state_is_refused() -> None:
    case = scan_case("plain", N, torch.bfloat16)
    case["state"] = case["state"].bfloat16()
    with pytest.raises(ValueError, match=r"in which torch\.bfloat16 values are accumulated, not torch\.bfloat16"):
        linear_scan(**case)
